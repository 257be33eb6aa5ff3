"""The networks of a batch: at several scales, on several devices, each made when it is first needed."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from edsr.errors import WeightsError
from edsr.inference import MultiDeviceUpscaler, Upscaler
from edsr.models import Network
from edsr.weights import AUTO, FAITHFUL, Choice, available_scales, choose_by_file, load_model, load_with_notes

MIXTURES = 4
"""Mixtures that are kept ready; each holds weights, on a GPU also CUDA graphs. See `UpscalerPool`."""


def usual_scale(model: str, scale: int | None, expected_scale: float = 0, residual_scale: float | None = None) -> int:
    """The scale of an `UpscalerPool` of these arguments, which is not made. Raises WeightsError."""
    if scale is None:
        try:
            scale = next((s for s in available_scales(model) if s >= expected_scale), None)
        except ValueError as error:
            raise WeightsError(f"{model}: {error}") from None
    return scale or load_model(model, scale, residual_scale).config.scale


class UpscalerPool:
    """Upscalers of one network, or of those that `edsr.weights.selection` chooses, at several scales and on several
    devices; each is made when it is first needed. Safe to use from several threads.

    Of the networks that "auto" chooses, the last MIXTURES used stay ready.

    Args:
        model: As `load_model` takes it, or "auto".
        scale: The only one to be used, or None for any that the network has; the smallest of at least `expected_scale`
            is loaded at once.
        devices: Each as `Upscaler` takes it; further options are those of `Upscaler`.
        description: What people are told of the network, by default its name.
        residual_scale: As `load_model` takes it.

    Raises:
        BackendError, WeightsError: One of these cannot be had.
    """

    def __init__(
        self,
        model: str,
        scale: int | None,
        devices: Sequence[str],
        precision: str = "auto",
        backend: str = "auto",
        tile: int | str = "auto",
        expected_scale: float = 0,
        description: str | None = None,
        residual_scale: float | None = None,
    ):
        self._auto = model == AUTO
        self._default = Choice(FAITHFUL if self._auto else model, description or model)
        self._options, self._devices = (precision, backend, tile), devices
        self._lock = threading.Lock()
        # A device computes one band at a time, whichever network's: together they need no more memory than one.
        self._compute_locks = [threading.Lock() for _ in devices]
        self._loaded: OrderedDict[tuple[str, int], tuple[Network, dict[int, Upscaler]]] = OrderedDict()
        try:
            known = available_scales(model) if scale is None else ()
        except ValueError as error:
            raise WeightsError(f"{model}: {error}") from None
        self._residual_scale = residual_scale
        self._notes: dict[str, tuple[str, ...]] = {}
        first = self._load(self._default.model, scale or next((s for s in known if s >= expected_scale), None))
        self.scale: int = first.config.scale  # where an image asks for none
        self.scales: tuple[int, ...] = known or (self.scale,)
        self._loaded[self._default.model, self.scale] = first, {}
        for i in range(len(devices)):
            self.upscaler(i, self.scale)

    def __len__(self) -> int:
        """How many devices there are."""
        return len(self._devices)

    @property
    def loaded(self) -> list[tuple[str, int]]:
        """(model, scale) of the networks that are ready; the one used last at the end."""
        with self._lock:
            return list(self._loaded)

    def _load(self, model: str, scale: int | None) -> Network:
        network, notes = load_with_notes(model, scale, self._residual_scale)
        self._notes[model] = tuple(f"{model}: {note}" for note in notes)
        return network

    def notes(self, model: str) -> tuple[str, ...]:
        """What was assumed of a network that is loaded, in lines."""
        return self._notes.get(model, ())

    def choose(self, source: Path, scale: int) -> Choice:
        """The network for an image, at one of `scales`."""
        return choose_by_file(source, scale) if self._auto else self._default

    def upscaler(self, device: int, scale: int, model: str | None = None) -> Upscaler:
        """The network of that scale on device number `device`. model: one that `choose` gave; None: the usual one."""
        with self._lock:
            key = model or self._default.model, scale
            if key not in self._loaded:
                chosen = [old for old in self._loaded if old[0] != self._default.model]
                if key[0] != self._default.model and len(chosen) == MIXTURES:
                    del self._loaded[chosen[0]]  # whoever still uses it keeps it until done
                self._loaded[key] = self._load(*key), {}
            self._loaded.move_to_end(key)
            network, ready = self._loaded[key]
            if device not in ready:
                lock = self._compute_locks[device]
                upscaler = Upscaler(network, self._devices[device], *self._options, name=key[0], compute_lock=lock)
                upscaler.warm_up()
                ready[device] = upscaler
            return ready[device]

    def on_all_devices(self, scale: int, model: str | None = None) -> Upscaler | MultiDeviceUpscaler:
        """The network of that scale on all devices together, which share an image's columns. model: see `upscaler`."""
        upscalers = [self.upscaler(i, scale, model) for i in range(len(self))]
        return upscalers[0] if len(upscalers) == 1 else MultiDeviceUpscaler(upscalers)
