"""A finished study as files: study.md with its figures, study.csv, and study.html, one page that needs nothing else."""

import base64
import html
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from edsr.errors import StudyError
from edsr.system import atomic_file

from .claims import Finding, findings
from .figures import draw_figures
from .runner import Study
from .tables import HEADS, OLD_HEADS, csv_text, heading, markdown, method_rows, old_texts, row_texts, summary

TEMPLATE = Path(__file__).with_name("page.html")
SHOWN = 12  # images of the page, which holds them all


def check_report() -> None:
    """Raises StudyError if there is nothing to draw the plots with: better before a night than after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise StudyError("the plots need matplotlib: pip install 'edsr-triton[train]'")


def write_report(study: Study) -> list[Path]:
    """Writes all that a study says; gives the files. Raises StudyError."""
    out, found = Path(study.config.out), findings(study) if study.config.claims else []
    try:
        figures = draw_figures(study, found, out / "figures")
        texts = {
            "study.md": markdown(study, found),
            "study.csv": csv_text(study),
            "study.html": page(study, found, figures),
        }
        for name, text in texts.items():
            with atomic_file(out / name) as file:
                file.write(text.encode())
    except OSError as error:
        raise StudyError(f"{out}: the report cannot be written ({error.strerror}); make room") from None
    return [out / name for name in texts]


def page(study: Study, found: Sequence[Finding], figures: dict[str, Path]) -> str:
    """The page: HTML in which every text is escaped and every figure embedded."""
    title = heading(study, "Study")
    claims = ""
    if found:
        rows = ((f.claim, f.verdict, f.measured) for f in found)
        plots = "".join(_image(figures[f"claim-{f.name}"], f.claim) for f in found)
        table = _table(("claim", "holds", "measured"), rows, "table words")
        claims = f"<h2>{html.escape(heading(study, 'Claims'))}</h2>{table}{plots}"
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        summary=html.escape(summary(study)),
        methods_heading=html.escape(heading(study, "Methods")),
        methods=_table(HEADS, map(row_texts, method_rows(study))),
        curves=_image(figures["curves"], "learning curves"),
        old_heading=html.escape(heading(study, "At half and at full length")),
        old=_table(OLD_HEADS, old_texts(study)),
        claims=claims,
        images_heading=html.escape(heading(study, "Images")),
        images="".join(_image(figures[path.stem], path.stem) for path in study.squares[:SHOWN]),
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "table") -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="{kind}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _image(path: Path, title: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(title)
    return f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'
