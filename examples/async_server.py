"""A web service that upscales what is posted to it, on one network for all; whoever leaves, ends only their own work.

It is a plain ASGI application: `uvicorn examples.async_server:app`, then `curl --data-binary @small.png -o large.png
localhost:8000`. A FastAPI takes it in by `api.mount("/upscale", app)`.
`python -m examples.async_server` needs no server: it plays three clients, of which one leaves.
"""

import asyncio
import io
import threading
from functools import cache
from pathlib import Path

from PIL import Image

from edsr import Upscaler, load_model

MOST_AT_ONCE = asyncio.Semaphore(4)  # each holds an image and its result in memory


@cache
def upscaler() -> Upscaler:
    """Made in the process that serves, after any fork. Its calls take turns band by band."""
    return Upscaler(load_model("edsr-baseline", scale=2))


async def upscaled(image: Image.Image) -> Image.Image:
    """Leaves the event loop free. If this task is cancelled, its thread ends, too, with the band that it is at."""
    left = threading.Event()

    def progress(done: int, total: int) -> None:
        if left.is_set():
            raise asyncio.CancelledError

    try:
        return await asyncio.to_thread(upscaler(), image, progress=progress)
    finally:
        left.set()


async def app(scope, receive, send) -> None:
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    work, leaving = asyncio.create_task(png_of(body)), asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in work, leaving:
            task.cancel()
    if not work.done():  # the client has left
        return
    try:
        status, kind, result = 200, b"image/png", await work
    except (OSError, TypeError, ValueError) as error:  # no image, or of a kind that is not taken
        status, kind, result = 400, b"text/plain", str(error).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": result})


async def png_of(body: bytes) -> bytes:
    async with MOST_AT_ONCE:
        image = await asyncio.to_thread(Image.open, io.BytesIO(body))
        large, file = await upscaled(image), io.BytesIO()
        await asyncio.to_thread(large.save, file, "PNG")
        return file.getvalue()


async def disconnected(receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def main() -> None:
    """Three clients at once: one waits, one leaves, one posts no image."""
    file = io.BytesIO()
    with Image.open(Path(__file__).with_name("harbour.png")) as image:
        image.crop((200, 180, 360, 300)).save(file, "PNG")

    async def client(body: bytes, patience: float) -> str:
        messages, answer = [{"type": "http.request", "body": body}], []

        async def receive():
            if not messages:
                await asyncio.sleep(patience)
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message):
            answer.append(message)

        await app({"type": "http"}, receive, send)
        return f"{answer[0]['status']}, {len(answer[1]['body']):,} bytes" if answer else "left"

    clients = {"waits": (file.getvalue(), 600), "leaves": (file.getvalue(), 0), "posts text": (b"Hello", 600)}
    for name, said in zip(clients, await asyncio.gather(*(client(*c) for c in clients.values())), strict=True):
        print(f"{name}: {said}")


if __name__ == "__main__":
    asyncio.run(main())
