"""The page of a comparison: what it holds, and what a person can do with it in a browser."""

import base64
import html
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edsr.evaluation.comparison import Comparison
from edsr.evaluation.page import render_page
from tests.conftest import make_image

TITLES = "bicubic", "EDSR x2", "original"
WIDTH, HEIGHT = 300, 120
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --force-color-profile=srgb"""


def comparison(count=3, height=HEIGHT, width=WIDTH, name="a.png", detail=(200, 40, 60)):
    """Images that are dark, middling and bright, so that one pixel tells which it is."""
    images = {title: make_image(height, width, seed=i) // 4 + 90 * i for i, title in enumerate(TITLES[:count])}
    scores = {"bicubic": (30.124, 0.91), "EDSR x2": (31.5, float("nan"))} if count == 3 else {}
    return Comparison(name, (width // 2, height // 2), 2, images, scores, detail)


# --- what it holds


def embedded(text):
    data = re.findall(r"base64,([A-Za-z0-9+/=]+)", text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image in data]


@pytest.mark.parametrize("count", [2, 3])
def test_images_are_embedded_without_loss(count):
    found = comparison(count)
    text = render_page(found)
    for got, want in zip(embedded(text), found.images.values(), strict=True):
        np.testing.assert_array_equal(got, want)
    assert "150 x 60 pixels, upscaled to 300 x 120." in text and "holds" not in text
    assert ('name="left"' in text) == ('name="right"' in text) == (count == 3)


@pytest.mark.parametrize(
    ("height", "width", "detail", "left", "top"),
    [
        (40, 400, (200, 0, 40), 140, 0),
        (200, 30, (0, 0, 30), 0, 0),
        (170, 190, (180, 160, 9), 30, 10),
    ],
)
def test_of_large_results_it_holds_the_surroundings_of_the_detail(height, width, detail, left, top):
    found = comparison(2, height, width, detail=detail)
    text = render_page(found, max_side=160)
    high, wide = min(height, 160), min(width, 160)
    for got, want in zip(embedded(text), found.images.values(), strict=True):
        np.testing.assert_array_equal(got, want[top : top + high, left : left + wide])
    assert f"holds {wide} x {high} of them around the detail, from {left}, {top} on" in text


def test_it_refers_to_nothing_outside():
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", render_page(comparison()))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link (?!rel=\"icon\" href=\"data:,\")|<script [^>]", text)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("name", ['<img src=x onerror="fail()">&\'.png', "$name ${x}.png", "画像\udcff.png"])
def test_names_are_escaped(name):
    text = render_page(comparison(name=name))
    shown = html.escape(name.replace("\udcff", "?"))
    assert f"<h1>{shown}</h1>" in text and f"<title>{shown}</title>" in text
    assert text.count(shown) == 2 and (shown == name or name not in text)
    text.encode("utf-8")


def test_titles_are_escaped():
    found = comparison()
    images = {f"<{title}>": image for title, image in found.images.items()}
    text = render_page(replace(found, images=images, scores={"<EDSR x2>": (30, 0.9)}))
    assert "<bicubic>" not in text and "<EDSR x2>" not in text and "<original>" not in text
    assert text.count("&lt;original&gt;") == 3 and text.count("&lt;EDSR x2&gt;") == 4


def test_scores_and_the_better_ones():
    text = render_page(comparison())
    assert "<td>30.12 dB</td><td class=best>0.9100</td>" in text
    assert "<td class=best>31.50 dB</td><td></td>" in text
    assert "<table>" not in render_page(comparison(2))


# --- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if not CHROMIUM or not DRIVER:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of a comparison in a window of that size; in the end nothing may have gone wrong or out."""
    requests = []

    def open_page(found, width=1000, height=700):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        path = tmp_path / "a.html"
        path.write_text(render_page(found), encoding="utf-8")
        browser.get_log("performance")
        browser.get(path.as_uri())
        requests.append(path.as_uri())
        return browser

    yield open_page
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith("data:")] == requests
    assert browser.get_log("browser") == []


def element(browser, name):
    return browser.find_element("id", name)


def seen(browser):
    """[h, w, 3] of the view's pixels on the screen."""
    box = element(browser, "view").rect
    x, y, width, height = (round(box[key]) for key in ("x", "y", "width", "height"))
    screen = np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB"))
    return screen[y : y + height, x : x + width]


def check_view(browser, share, left, right, zoom, from_x=0, from_y=0):
    """Left of the handle there is the one image, right of it the other, to the pixel; 24 pixels around it are not
    looked at, nor the strip of titles on top."""
    view = seen(browser)
    height, width, _ = view.shape
    across, down = slice(from_x, from_x + width), slice(from_y, from_y + height)
    before, after = (image.repeat(zoom, 0).repeat(zoom, 1)[down, across] for image in (left, right))
    at = round(share * width)
    np.testing.assert_array_equal(view[40:, : max(0, at - 24)], before[40:, : max(0, at - 24)])
    np.testing.assert_array_equal(view[40:, at + 24 :], after[40:, at + 24 :])


def drag(browser, name, x, y, kind="mouse"):
    """Presses an element in its middle and moves by x, y, in steps."""
    from selenium.webdriver.common.action_chains import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    actions = ActionBuilder(browser, mouse=PointerInput(kind, kind), duration=20)
    pointer = actions.pointer_action
    pointer.move_to(element(browser, name)).pointer_down()
    for _ in range(4):
        pointer.source.create_pointer_move(duration=20, x=x // 4, y=y // 4, origin="pointer")
    pointer.pointer_up()
    actions.perform()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_the_handle_is_dragged(opened, kind):
    found = comparison()
    browser = opened(found)
    bicubic, edsr, _ = found.images.values()
    check_view(browser, 0.5, bicubic, edsr, zoom=2)
    drag(browser, "handle", 180, 20, kind)
    check_view(browser, 0.5 + 180 / 600, bicubic, edsr, zoom=2)
    assert element(browser, "split").get_property("value") == "80"
    drag(browser, "handle", -400, 0, kind)
    check_view(browser, 0.8 - 400 / 600, bicubic, edsr, zoom=2)
    drag(browser, "handle", -160, 0, kind)  # beyond the edge
    check_view(browser, 0, bicubic, edsr, zoom=2)


def test_an_image_that_is_seen_whole_can_be_dragged_anywhere(opened):
    found = comparison(2)
    browser = opened(found)
    drag(browser, "handle", 200, 0)
    drag(browser, "frame", -100, 0)
    check_view(browser, 0.5 - 100 / 600, *found.images.values(), zoom=2)


def test_keys_move_the_handle(opened):
    from selenium.webdriver.common.keys import Keys

    found = comparison(2)
    browser = opened(found)
    element(browser, "split").send_keys(Keys.ARROW_LEFT * 10)
    check_view(browser, 0.4, *found.images.values(), zoom=2)
    element(browser, "split").send_keys(Keys.HOME)
    check_view(browser, 0, *found.images.values(), zoom=2)
    drag(browser, "handle", 100, 0)
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)  # whoever has dragged it may go on by keys
    assert element(browser, "split").get_property("value") == "18"


def press(browser, name, value):
    browser.find_element("css selector", f"input[name={name}][value='{value}'] + span").click()


def test_which_images_are_compared(opened):
    found = comparison()
    browser = opened(found)
    images = list(found.images.values())
    for left, right in (0, 2), (1, 2), (2, 1), (1, 1), (2, 0):
        press(browser, "left", left)
        press(browser, "right", right)
        check_view(browser, 0.5, images[left], images[right], zoom=2)
        titles = element(browser, "before").text, element(browser, "after").text
        assert titles == (TITLES[left], TITLES[right])


def test_zoom_shows_the_detail_pixel_by_pixel_and_moves(opened):
    found = comparison(2)
    browser = opened(found)
    press(browser, "zoom", 1)
    check_view(browser, 0.5, *found.images.values(), zoom=1)
    assert element(browser, "view").rect["width"] == WIDTH
    press(browser, "zoom", 4)
    width, height = (element(browser, "view").rect[side] for side in ("width", "height"))
    assert (width, height) == (940, 480)  # the window less its margins; all of the height
    at = 1200 - 940  # the detail's middle, 4 * 230, would lie in the middle but for the image's edge
    check_view(browser, 0.5, *found.images.values(), zoom=4, from_x=at)
    drag(browser, "frame", 100, 0)  # the middle of the frame is the handle's, which lies above it
    check_view(browser, 0.5 + 100 / 940, *found.images.values(), zoom=4, from_x=at)
    drag(browser, "frame", 120, 0)
    check_view(browser, 0.5 + 100 / 940, *found.images.values(), zoom=4, from_x=at - 120)


def test_a_narrow_window(opened):
    found = comparison()
    browser = opened(found, 280, 900)
    images = list(found.images.values())
    assert element(browser, "view").rect["width"] == 280 - 24
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 280
    check_view(browser, 0.5, *images[:2], zoom=1, from_x=300 - 256)
    drag(browser, "handle", 60, 0)
    check_view(browser, 0.5 + 60 / 256, *images[:2], zoom=1, from_x=300 - 256)


@pytest.mark.parametrize(("scheme", "bright"), [("light", True), ("dark", False)])
def test_light_and_dark(opened, scheme, bright):
    browser = opened(comparison())
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    screen = np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("L"))
    assert (screen[0, 0] > 200) == bright
