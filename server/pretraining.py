"""Train one network centrally, for studies that start from its weights."""

import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from fl_sim.data import Images, Splits
from fl_sim.models import ModelSpec, build_model, check_fits
from fl_sim.models.weights import digest_of, load_weights, write_weights
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.storage.files import StoreError, read_tensors, write_tensors, write_text
from fl_sim.storage.fingerprint import fingerprint
from fl_sim.storage.progress import Advance
from fl_sim.study.settings import Settings, SettingsError
from fl_sim.updates.local_update import LocalWork

_CHUNK = 512
_WARM_UP = 0.25  # share of the steps in which the step size rises
_VELOCITY = "velocity."  # prefix of the optimizer's tensors in a checkpoint


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum, on crops and flips, in one cycle.

    Attributes
    ----------
    epochs, batch_size : int
        Passes over the training images, and images in a step.
    learning_rate : float
        Highest step size. It rises to that over a quarter of the steps, then falls to 0, both
        linearly (one cycle, Smith and Topin 2017, arXiv 1708.07120).
    momentum, weight_decay : float
        As in `torch.optim.SGD`.
    crop : int
        Pixels by which an image is shifted, at most, in each direction; what enters is black.
    flip : bool
        Whether half of the images are mirrored.
    """

    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: int = 4
    flip: bool = True

    def rate(self, step: int, steps: int) -> float:
        """Return the step size of a 0-based step of ``steps``."""
        done = (step + 1) / steps
        left = 1 + 1 / steps - done
        return self.learning_rate * min(1.0, done / _WARM_UP, left / (1 - _WARM_UP))


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Return images ``(n, C, H, W)``, each shifted and perhaps mirrored by a draw of its own."""
    count, _, height, width = images.shape
    if recipe.crop:
        down, right = torch.randint(0, 2 * recipe.crop + 1, (2, count, 1), generator=generator)
        rows, columns = down + torch.arange(height), right + torch.arange(width)
        padded = pad(images, (recipe.crop,) * 4)
        each = torch.arange(count)[:, None, None]
        images = padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if recipe.flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return images


class Pretraining:
    """One network that is trained on all images of a data set but the test images.

    Clients train on these images again, and the gallery of identifiability is of them too: the
    network has seen both, and neither the test images.

    Parameters
    ----------
    settings : Settings
        Model, data set, first seed, and how pixels are normalised.
    splits : Splits
        The images.
    recipe : Recipe
        How it is trained.
    out : Path
        File of the weights; a card ``.json`` and, on the way, a checkpoint lie beside it.

    Raises
    ------
    SettingsError
        If the model does not fit the images.
    """

    def __init__(self, settings: Settings, splits: Splits, recipe: Recipe, out: Path) -> None:
        self.spec = ModelSpec(settings.model, splits.shape, len(splits.classes))
        self.work, self.seed = settings.training.work, settings.seeds[0]
        self.splits, self.recipe, self.out = splits, recipe, out
        try:
            check_fits(self.spec)
            self.work.inputs(torch.empty(1, *splits.shape))
        except ValueError as error:
            raise SettingsError("model", settings.model, str(error)) from error
        self.facts: dict[str, Any] = {
            "model": self.spec.name,
            "shape": list(self.spec.shape),
            "classes": list(splits.classes),
            "dataset": settings.data.dataset,
            "images": splits.digest,
            "seed": self.seed,
            "recipe": asdict(recipe),
            "normalize_mean": list(self.work.mean),
            "normalize_std": list(self.work.std),
        }

    @property
    def card_file(self) -> Path:
        """What the weights are, and where they come from."""
        return self.out.with_suffix(".json")

    @property
    def checkpoint_file(self) -> Path:
        """State after the last epoch that ended; deleted at the end."""
        return self.out.with_suffix(".checkpoint")

    @property
    def steps(self) -> int:
        """Steps of an epoch; what is left of the images is in the next."""
        return max(1, len(self.images) // self.recipe.batch_size)

    @cached_property
    def images(self) -> Images:
        """What the network is trained on."""
        train, public = self.splits.train, self.splits.public
        return Images(
            torch.cat([train.data, public.data]), torch.cat([train.labels, public.labels])
        )

    def delete(self) -> None:
        """Delete weights, card and checkpoint."""
        for path in (self.out, self.card_file, self.checkpoint_file):
            path.unlink(missing_ok=True)

    def card(self) -> dict[str, Any] | None:
        """Return the card if the weights are there and were trained like this, else None.

        Raises
        ------
        SettingsError
            If the files that are there come from other settings or data.
        """
        if not self.out.exists():
            return None
        try:
            card: dict[str, Any] = json.loads(self.card_file.read_text())
            same = all(card[name] == value for name, value in self.facts.items())
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise SettingsError("out", str(self.out), "exists with other settings; add --force")
        return card

    def run(self, advance: Advance) -> dict[str, Any]:
        """Train what is left of the epochs, write weights and card, and return the card."""
        module = build_model(self.spec, self.seed).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            module.parameters(),
            lr=self.recipe.learning_rate,
            momentum=self.recipe.momentum,
            weight_decay=self.recipe.weight_decay,
            nesterov=self.recipe.momentum > 0,
        )
        history, seconds = self._resume(module, optimizer)
        advance(len(history) * self.steps)
        for epoch in range(len(history), self.recipe.epochs):
            began = time.monotonic()
            history.append(self._epoch(module, optimizer, epoch, advance))
            seconds += time.monotonic() - began
            self._keep(module, optimizer, history, seconds)
        accuracy, loss = test(module, self.work, self.splits.test)
        write_weights(self.out, module)
        card = self.facts | {
            "digest": digest_of(module.state_dict()),
            "parameters": sum(one.numel() for one in module.parameters()),
            "training_images": len(self.images),
            "test_images": len(self.splits.test),
            "test_accuracy": round(accuracy, 6),
            "test_loss": round(loss, 6),
            "epochs": history,
            "seconds": round(seconds, 1),
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        }
        write_text(self.card_file, json.dumps(card, indent=1))
        self.checkpoint_file.unlink(missing_ok=True)
        return card

    def _epoch(
        self,
        module: nn.Module,
        optimizer: torch.optim.SGD,
        epoch: int,
        advance: Advance,
    ) -> dict[str, float]:
        """Train one epoch; return the mean loss and accuracy on its images as they were met."""
        module.train()
        total, hits, seen = 0.0, 0, 0
        for step, (batch, labels) in enumerate(self._batches(epoch)):
            done = epoch * self.steps + step
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.rate(done, self.recipe.epochs * self.steps)
            inputs = self.work.inputs(batch).contiguous(memory_format=torch.channels_last)
            logits = module(inputs)
            loss = cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seen += len(labels)
            total += float(loss.detach()) * len(labels)
            hits += int((logits.detach().argmax(dim=1) == labels).sum())
            advance(1, f"epoch {epoch + 1}, loss {total / seen:.3f}, accuracy {hits / seen:.1%}")
        return {"loss": round(total / seen, 6), "accuracy": round(hits / seen, 6)}

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = torch_rng(self.seed, Purpose.PRETRAINING, epoch)
        order = torch.randperm(len(self.images), generator=rng)
        for rows in torch.split(order, self.recipe.batch_size)[: self.steps]:
            chosen = self.images.take(rows.numpy())
            yield augment(chosen.pixels(), self.recipe, rng), chosen.labels

    def _keep(
        self,
        module: nn.Module,
        optimizer: torch.optim.SGD,
        history: list[dict[str, float]],
        seconds: float,
    ) -> None:
        """Write the checkpoint of an epoch."""
        tensors = dict(module.state_dict())
        for name, parameter in module.named_parameters():
            velocity = optimizer.state[parameter].get("momentum_buffer")
            if velocity is not None:
                tensors[_VELOCITY + name] = velocity
        facts = {"key": fingerprint(self.facts), "history": history, "seconds": seconds}
        write_tensors(self.checkpoint_file, tensors, facts)

    def _resume(
        self, module: nn.Module, optimizer: torch.optim.SGD
    ) -> tuple[list[dict[str, float]], float]:
        """Continue after the last epoch of the checkpoint; return history and seconds of before.

        Raises
        ------
        SettingsError
            If the checkpoint comes from other settings or data, or cannot be read.
        """
        if not self.checkpoint_file.exists():
            return [], 0.0
        try:
            tensors, facts = read_tensors(self.checkpoint_file)
            if facts.get("key") != fingerprint(self.facts):
                raise ValueError("it comes from other settings or data")
            own = {k: one for k, one in tensors.items() if not k.startswith(_VELOCITY)}
            load_weights(module, own)
        except (StoreError, ValueError) as error:
            allowed = f"cannot be continued, as {error}; add --force"
            raise SettingsError("out", str(self.checkpoint_file), allowed) from error
        for name, parameter in module.named_parameters():
            if _VELOCITY + name in tensors:
                optimizer.state[parameter]["momentum_buffer"] = tensors[_VELOCITY + name]
        return list(facts["history"]), float(facts["seconds"])


def test(module: nn.Module, work: LocalWork, images: Images) -> tuple[float, float]:
    """Return accuracy in [0, 1] and mean cross-entropy in nats, in evaluation mode."""
    module.eval()
    hits, loss = 0, 0.0
    with torch.no_grad():
        for start in range(0, len(images), _CHUNK):
            rows = slice(start, start + _CHUNK)
            logits, labels = module(work.inputs(images.pixels(rows))), images.labels[rows]
            hits += int((logits.argmax(dim=1) == labels).sum())
            loss += float(cross_entropy(logits, labels, reduction="sum"))
    return hits / len(images), loss / len(images)
