"""Networks with `save_pretrained`, `from_pretrained` and `push_to_hub`, by huggingface_hub's mixin.

    from edsr.integrations.hub import HubNetwork

    network = HubNetwork.from_pretrained("runs/x2/best.safetensors")
    network.terms["license"] = "cc-by-4.0"
    network.record["scores"] = {"Set5": {"psnr": 37.60, "ssim": 0.9586}}
    network.save_pretrained("edsr-x2")

`edsr.load_model` reads such a folder, and such a repository on the Hub, without this module.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edsr.errors import WeightsError
from edsr.models import EDSR, MDSR, SRCNN, VDSR, Network, SRResNet, check_network
from edsr.storage import why_not_a_path
from edsr.system import atomic_folder
from edsr.weights import HUB_MISSING, as_repository, load_with_info, make_terms, save_model, source_files

from .card import make_card

try:
    from huggingface_hub import ModelCard, ModelHubMixin
except ImportError:
    raise WeightsError(f"the Hugging Face Hub needs a package: {HUB_MISSING}") from None

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"

logger = logging.getLogger(__name__)


class HubNetwork(ModelHubMixin, Network, library_name="edsr-triton"):
    """A network, of any architecture, with what the mixin adds. `from_pretrained` and `wrap` make one.

    Attributes:
        terms: License, training data and what was assumed, see `edsr.weights.terms`; written into what is saved.
        record: How the weights came about, as `save_model` takes it; `scores` in it become a table of the model card:
            {"Set5": {"psnr": 37.60, "ssim": 0.9586}}.
    """

    terms: dict[str, Any]
    record: dict[str, Any]
    _sources: tuple[Path, ...] = ()

    @classmethod
    def wrap(
        cls, model: Network, record: Mapping[str, Any] | None = None, terms: Mapping[str, Any] | None = None
    ) -> "HubNetwork":
        """A network with the same parameters, and these methods.

        Args:
            model: The network; it stays as it is.
            record: See the class.
            terms: See the class; those of the record by default.

        Raises:
            WeightsError: It is of another architecture than the class.
            TypeError: It is no network.
        """
        check_network(model)
        kind = KINDS[model.config.architecture]
        if not issubclass(kind, cls):
            raise WeightsError(f"the network is of {model.config.architecture}; take HubNetwork, or {kind.__name__}")
        network = kind(model.config)
        network.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        network.record = dict(record or {})
        network.terms = make_terms(terms, network.record, (), "edsr-triton")
        return network.train(model.training)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]: of any architecture
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        scale: int | None = None,
        residual_scale: float | None = None,
    ) -> "HubNetwork":
        """Loads whatever `edsr.load_model` loads; USER/NAME, if there is no such file, from the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: A folder, a repository, or another name that `load_model` takes.
            force_download: Whether the repository is downloaded anew.
            token: For a repository that is private, or closed until its terms are accepted.
            cache_dir: Where downloads are kept.
            local_files_only: Whether only what was downloaded before is used.
            revision: A branch, tag or commit of the repository.
            scale: As in `load_model`.
            residual_scale: As there.

        Returns:
            The network, in fp32 on the CPU, in eval mode.

        Raises:
            WeightsError: As `load_model`; or the network is of another architecture than the class.
        """
        name = as_repository(os.fsdecode(pretrained_model_name_or_path), revision)
        options = {"force_download": force_download, "token": token, "local_files_only": local_files_only}
        options |= {} if cache_dir is None else {"cache_dir": cache_dir}
        model, info = load_with_info(name, scale, residual_scale, **options)
        for note in info["notes"]:
            logger.warning("%s: %s", name, note)
        network = cls.wrap(model, info["training"], info["terms"])
        network._sources = tuple(source_files(name, scale, **options))
        return network

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Writes a folder with `model.safetensors`, `config.json` and a model card, `README.md`.

        A new folder is there whole or not at all; in one that exists a card is kept, and the others are replaced.

        Args:
            save_directory: Where to.
            config: Ignored; it is the network's.
            repo_id: Where `push_to_hub` uploads to, and what the card calls it; by default the folder's name.
            push_to_hub: Whether it is uploaded, too.
            model_card_kwargs: What the card says besides, see `generate_model_card`.
            push_to_hub_kwargs: As huggingface_hub's `push_to_hub` takes them.

        Returns:
            The address of the commit, if it was uploaded.

        Raises:
            WeightsError: It cannot be written or uploaded; then nothing has changed, or only the upload is missing.
        """
        if why := why_not_a_path(save_directory):
            raise WeightsError(why)
        folder = Path(save_directory)
        card = {"repo_id": repo_id or folder.name} | (model_card_kwargs or {})
        try:
            if not folder.is_dir():
                folder.parent.mkdir(parents=True, exist_ok=True)
                if folder.exists():
                    raise NotADirectoryError(0, "it is a file; name a folder")
                with atomic_folder(folder) as part:
                    super().save_pretrained(part, model_card_kwargs=card)
            else:
                self._replace_in(folder, card)
        except OSError as error:
            raise WeightsError(f"{folder}: cannot be written ({error.strerror or error})") from error
        if push_to_hub:
            return self.push_to_hub(repo_id or folder.name, model_card_kwargs=card, **push_to_hub_kwargs)
        return None

    def _replace_in(self, folder: Path, card: dict[str, Any]) -> None:
        part = Path(tempfile.mkdtemp(prefix=".edsr-", dir=folder))
        try:
            super().save_pretrained(part, model_card_kwargs=card)
            for name in TENSORS, CONFIG:
                os.replace(part / name, folder / name)
            if (folder / CARD).exists():
                logger.warning("%s: is kept as it is; remove it to get one for these weights", folder / CARD)
            else:
                os.replace(part / CARD, folder / CARD)
        finally:
            with suppress(OSError):
                shutil.rmtree(part)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(
            self,
            save_directory / TENSORS,
            training=self.record or None,
            terms=self.terms,
            sources=self._sources,
        )
        config = {"format": "edsr-triton", "architecture": self.config.architecture, **asdict(self.config)}
        (save_directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Uploads what `save_pretrained` writes, as huggingface_hub's mixin does.

        Raises:
            WeightsError: It cannot be uploaded.
        """
        card = {"repo_id": repo_id} | (options.pop("model_card_kwargs", None) or {})
        try:
            return super().push_to_hub(repo_id, model_card_kwargs=card, **options)
        except WeightsError:
            raise
        except (TypeError, AttributeError):  # mistakes of who calls
            raise
        except Exception as error:  # of the connection, of classes of several libraries
            why = next(iter(str(error).splitlines()), "")[:160] or type(error).__name__
            raise WeightsError(f"{repo_id}: cannot be uploaded ({why}); see hf auth login") from error

    def generate_model_card(self, *arguments: Any, **options: Any) -> ModelCard:
        """The model card: what the network is, how to use it, scores, training data and license.

        Args:
            arguments: None are taken.
            options: `repo_id`, the repository that the examples name, and `scores`, instead of the record's.
        """
        parameters = sum(p.numel() for p in self.parameters())
        return ModelCard(make_card(self.config, parameters, self.terms, self.record, *arguments, **options))


class HubEDSR(HubNetwork, EDSR):
    """An EDSR, with what the mixin adds."""


class HubMDSR(HubNetwork, MDSR):
    """An MDSR, with what the mixin adds."""


class HubSRCNN(HubNetwork, SRCNN):
    """An SRCNN, with what the mixin adds."""


class HubVDSR(HubNetwork, VDSR):
    """A VDSR, with what the mixin adds."""


class HubSRResNet(HubNetwork, SRResNet):
    """An SRResNet, with what the mixin adds."""


KINDS: dict[str, Any] = {
    "edsr": HubEDSR,
    "mdsr": HubMDSR,
    "srcnn": HubSRCNN,
    "vdsr": HubVDSR,
    "srresnet": HubSRResNet,
}
"""The class for each architecture."""
