"""Weights in the layout of the Hugging Face Hub: a folder of `config.json` and `model.safetensors`, or a repository.

`hf-hub:USER/NAME`, or `hf-hub:USER/NAME@REVISION`, names a repository. USER/NAME by itself, which a misspelled path
looks like as well, is looked for among what was downloaded before and never downloaded. super-image's repositories,
with a `pytorch_model_2x.pt` for each scale, are read, too.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from edsr.errors import WeightsError
from edsr.models import SCALES, EDSRConfig, NetworkConfig
from edsr.strict_json import loads

from .edsr import FORMAT, NO_MEAN
from .header import CONFIGS, read_config
from .interpolation import difference

PREFIX = "hf-hub:"
CONFIG, TENSORS = "config.json", "model.safetensors"
HUB_MISSING = "pip install 'edsr-triton[hub]'"

MAX_CONFIG_BYTES = 1_000_000
MAX_DOWNLOAD = 1_000_000_000
"""Of a file of weights, in bytes; the largest published network has 0.2 GB."""

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
_NAME = re.compile(rf"({PREFIX})?({_PART}/{_PART})(?:@([\w.][\w./-]*))?", re.ASCII)
_FILES = re.compile(r"\.(?:safetensors|pth?|ckpt|bin|pkl|onnx)$", re.IGNORECASE)

logger = logging.getLogger(__name__)


class Repository(NamedTuple):
    """A repository on the Hub.

    Attributes:
        id: USER/NAME.
        revision: A branch, tag or commit; None for the main branch.
        explicit: Whether it may be downloaded, since it was named as one.
    """

    id: str
    revision: str | None = None
    explicit: bool = True


class FolderConfig(NamedTuple):
    """What a `config.json` says.

    Attributes:
        layout: A key of `edsr.weights.edsr.LAYOUTS`: FORMAT, or super-image.
        config: Of the network; of super-image's, whose scale is in the names of its files, only blocks, features and
            residual scale count.
    """

    layout: str
    config: NetworkConfig


class Located(NamedTuple):
    """A file of weights.

    Attributes:
        path: Where it is.
        stated: What the `config.json` beside it says, if a folder or a repository was named that has one.
        in_folder: Whether one was named: then a config or a header must say what the network is.
    """

    path: Path
    stated: FolderConfig | None = None
    in_folder: bool = False


def parse_repository(name: str) -> Repository | None:
    """The repository that a name may mean, if there is no file or folder of that name; None if it means none.

    Raises:
        WeightsError: It begins with hf-hub: and goes on as no repository's name does.
    """
    found = _NAME.fullmatch(name)
    if found and (found[1] or not _FILES.search(name)):
        return Repository(found[2], found[3], bool(found[1]))
    if name.startswith(PREFIX) and ":" not in name.removeprefix(PREFIX):  # which a mixture has
        raise WeightsError(f"{name}: a repository is named {PREFIX}USER/NAME, or {PREFIX}USER/NAME@REVISION")
    return None


def as_repository(name: str, revision: str | None = None) -> str:
    """What `load_model` takes for a name that may be USER/NAME on the Hub, to be downloaded if need be.

    Args:
        name: It is given back if there is such a file or folder, or it is no repository's.
        revision: A branch, tag or commit, for a name that has none.

    Raises:
        WeightsError: As `parse_repository` does.
    """
    repository = None if os.path.exists(name) else parse_repository(name)
    if repository is None:
        return name
    revision = revision or repository.revision
    return f"{PREFIX}{repository.id}" + (f"@{revision}" if revision else "")


def locate_in(folder: Path, scale: int | None = None) -> Located:
    """The file of weights in a folder.

    Args:
        folder: One that `save_pretrained` has written, or super-image's, or a snapshot of a repository.
        scale: Which of several files; by default the one that config.json names, or the smallest.

    Raises:
        WeightsError: There is none, or config.json is damaged, or of another kind of network.
    """
    table = _read_table(folder / CONFIG)
    stated = None if table is None else _understand(folder / CONFIG, table)
    names = _candidates(table, scale)
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        which = f" of x{scale}" if stated and stated.layout != FORMAT and scale else ""
        raise WeightsError(f"{folder}: is a folder without {TENSORS}{which}; give the file of weights in it")
    return Located(path, stated, True)


def fetch(repository: Repository, scale: int | None = None, **options: Any) -> Path | None:
    """The snapshot of a repository in the cache, brought up to date if it is `explicit` and there is a connection.

    Only `config.json` and one file of weights are downloaded, and these only of a network that is known here.

    Args:
        repository: Which one.
        scale: Which of several files.
        options: `token`, `cache_dir`, `force_download` and `local_files_only`, as huggingface_hub takes them.

    Returns:
        The folder; None if the repository is not `explicit` and was never downloaded.

    Raises:
        WeightsError: The package is missing; there is no such repository, no connection, or nothing for us in it.
    """
    name = f"{PREFIX}{repository.id}" + (f"@{repository.revision}" if repository.revision else "")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        if not repository.explicit:
            return None
        raise WeightsError(f"{name}: the Hugging Face Hub needs a package: {HUB_MISSING}") from None
    options = {"revision": repository.revision} | options
    if not repository.explicit:
        options["local_files_only"] = True
    try:
        return _download(huggingface_hub, repository.id, scale, options)
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from None
    except errors.LocalEntryNotFoundError:
        if not repository.explicit:
            return None
        why = "it is not in the cache, and there is no connection to the Hub"
    except errors.GatedRepoError:
        why = "its owners ask for their terms to be accepted, on its page, and for hf auth login"
    except errors.RepositoryNotFoundError:
        why = "there is no such repository on the Hub, or it is private; check the name, or run hf auth login"
    except errors.RevisionNotFoundError:
        why = "there is no such revision"
    except Exception as error:  # of the connection, of classes of several libraries
        why = "cannot be downloaded (" + (next(iter(str(error).splitlines()), "")[:120] or type(error).__name__) + ")"
    raise WeightsError(f"{name}: {why}")


def _download(hub: Any, repository: str, scale: int | None, options: dict[str, Any]) -> Path:
    """Raises WeightsError without the repository's name, and huggingface_hub's errors."""
    where = {key: options[key] for key in ("revision", "cache_dir") if key in options}

    def download(name: str) -> Path:
        return Path(hub.hf_hub_download(repository, name, library_name="edsr-triton", **options))

    def is_cached(name: str) -> bool:
        return isinstance(hub.try_to_load_from_cache(repository, name, **where), str)

    def size_of(name: str) -> int | None:
        """In bytes; None if there is no such file. Asks once, while a download would ask for half a minute."""
        url = hub.hf_hub_url(repository, name, revision=options["revision"])
        try:
            return hub.get_hf_file_metadata(url, token=options.get("token")).size or 0
        except hub.errors.EntryNotFoundError:
            return None

    online, size = not options.get("local_files_only"), None
    if online:
        try:
            size = size_of(CONFIG)
        except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError):
            raise
        except Exception:  # of the connection, of classes of several libraries
            online, options = False, options | {"local_files_only": True, "force_download": False}
    table = None
    if size is not None or (not online and is_cached(CONFIG)):
        config = download(CONFIG)
        table = _read_table(config)
        _understand(Path(CONFIG), table or {})
    names = _candidates(table, scale)
    if not online:
        return download(next(filter(is_cached, names), TENSORS)).parent
    for name in names:
        if (size := size_of(name)) is None:
            continue
        if size > MAX_DOWNLOAD:
            raise WeightsError(f"its {name} has {size / 1e9:.1f} GB, which no network that is known here has")
        if not is_cached(name):
            logger.info("downloading %s of %s from the Hugging Face Hub (%.1f MB)", name, repository, size / 1e6)
        return download(name).parent
    raise WeightsError(f"there is no {TENSORS} in it" + (f" that upscales x{scale}" if table and scale else ""))


def _candidates(table: dict[str, Any] | None, scale: int | None) -> list[str]:
    """What a file of weights may be called, the best first."""
    first = table.get("scale") if table else None
    scales = [scale] if scale else sorted(SCALES, key=lambda s: (s != first, s))
    return [TENSORS, *(f"pytorch_model_{s}x.pt" for s in scales), "pytorch_model.pt", "pytorch_model.bin"]


def _read_table(path: Path) -> dict[str, Any] | None:
    """The content of a config.json; None if there is none. Raises WeightsError."""
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise ValueError("no file")  # but a folder, or a pipe, that would be waited for
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("too large")
        table = loads(path.read_bytes())
        if not isinstance(table, dict):
            raise ValueError("no table")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise WeightsError(f"{path}: is damaged ({str(error)[:80]}); give the file of weights beside it") from None
    return table


def _understand(path: Path, table: dict[str, Any]) -> FolderConfig:
    """What a config.json says. Raises WeightsError."""
    kind = table.get("model_type", table.get("architecture"))
    try:
        if isinstance(kind, str) and kind.lower() == "edsr" and "n_resblocks" in table:
            residual_scale = float(table.get("res_scale", 1))
            sizes = int(table["n_resblocks"]), int(table.get("n_feats", 64))
            config = EDSRConfig(2, *sizes, residual_scale, NO_MEAN)
            if table.get("n_colors", 3) != 3:
                raise ValueError(f"{table['n_colors']} channels, and images here have 3")
            return FolderConfig("super-image", config)
        if table.get("architecture", "edsr" if {"blocks", "features"} <= table.keys() else "") in CONFIGS:
            return FolderConfig(FORMAT, read_config(table))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"{path}: is damaged ({type(error).__name__}: {str(error)[:80]})") from None
    names = table.get("architectures")
    kind = kind or (names[0] if isinstance(names, list) and names else "an unknown kind")
    raise WeightsError(f"{path}: is of {str(kind)[:60]}, and networks of {', '.join(CONFIGS)} are read here")


def agree(located: Located, header: NetworkConfig | None) -> NetworkConfig | None:
    """What config.json and the header of the file of weights say of the network; None if neither is this project's.

    Raises:
        WeightsError: They contradict each other, or a folder has neither.
    """
    stated = located.stated
    if located.in_folder and stated is None and header is None:
        raise WeightsError("states no network, nor does a config.json beside it; name the file, not the folder")
    if stated is None or stated.layout != FORMAT:
        if stated and header:
            raise WeightsError("its config.json is super-image's, but the file is this project's")
        return header
    if header and (what := difference(stated.config, header)):
        raise WeightsError(f"its config.json contradicts its header: {what}; one of them is of another network")
    return stated.config


def check_agreement(stated: FolderConfig | None, layout: str, config: NetworkConfig) -> None:
    """Raises WeightsError unless a network that was read is what config.json says; see `FolderConfig`."""
    if stated is None:
        return
    if layout != stated.layout:
        raise WeightsError(f"its config.json is of layout {stated.layout}, but its tensors are named as in {layout}")
    if stated.layout != FORMAT:
        for name in ("blocks", "features"):
            says, has = getattr(stated.config, name), getattr(config, name)
            if says != has:
                raise WeightsError(f"its config.json says {says} {name}, and its tensors have {has}")
