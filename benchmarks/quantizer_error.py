"""Size and error of every quantizer on a real gradient: ``python -m benchmarks.quantizer_error``.

Writes ``docs/results/quantizers.csv``, which ``python -m docs.render`` puts into
``docs/quantizers.md``, and ``docs/images/quantizer_error.png``.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import torch
from adjustText import adjust_text  # type: ignore[import-untyped]
from sklearn.datasets import load_sample_image
from torch import Tensor

from fl_sim.coding.entropy import entropy_coded_bytes
from fl_sim.models import ModelSpec
from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.catalogue import EXAMPLES
from fl_sim.updates.local_update import LocalWork, Update, flat_model, local_update, one_hot

TABLE, PLOT = Path("docs/results/quantizers.csv"), Path("docs/images/quantizer_error.png")
_DRAWS = 5
_CURVES: dict[str, tuple[str, ...]] = {
    "uniform": tuple(f"uniform:bits={b}" for b in range(1, 9)),
    "absmax": tuple(f"absmax:bits={b}" for b in range(2, 9)),
    "stochastic": tuple(f"stochastic:bits={b}" for b in range(1, 9)),
    "qsgd, l2": tuple(f"qsgd:levels={s},norm=l2" for s in (1, 3, 7, 15, 31, 63, 127)),
    "kmeans": tuple(f"kmeans:clusters={1 << b}" for b in range(1, 7)),
    "blockwise, 64": tuple(f"blockwise:bits={b},block=64" for b in range(2, 9)),
    "log, base 2": tuple(f"log:base=2,bits={b}" for b in range(2, 7)),
    "eden": tuple(f"eden:bits={b}" for b in range(1, 9)),
    "topk": tuple(f"topk:keep={r}" for r in (0.01, 0.03, 0.1, 0.3)),
    "topk + stochastic 4": tuple(
        f"topk:keep={r}+stochastic:bits=4" for r in (0.01, 0.03, 0.1, 0.3)
    ),
}
_POINTS = ("fp16", "bf16", "fp8:format=e4m3", "terngrad", "natural", "scaled_sign", "drive")


@dataclass(frozen=True)
class Measurement:
    """Size and error of one quantizer on one update."""

    spec: str
    nbytes: int
    coded: int
    error: float
    cosine: float


def measure(spec: str, update: Update) -> Measurement:
    """Encode and decode ``update`` several times; return sizes and mean errors."""
    quantizer = parse_quantizer(spec)
    generator = torch.Generator().manual_seed(0)
    errors, cosines = [], []
    for _ in range(_DRAWS):
        payload = quantizer.encode(update, generator)
        decoded = quantizer.decode(payload).vector
        square = (decoded - update.vector).norm() ** 2 / update.vector.norm() ** 2
        errors.append(float(square))
        cosines.append(float(torch.cosine_similarity(decoded, update.vector, dim=0)))
    return Measurement(
        spec,
        payload.nbytes,
        entropy_coded_bytes(payload),
        sum(errors) / _DRAWS,
        sum(cosines) / _DRAWS,
    )


def sample_update() -> Update:
    """Return the gradient of a photograph's crop on the DLG LeNet."""
    picture = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1) / 255
    image = torch.nn.functional.adaptive_avg_pool2d(picture[:, :256, 200:456], 32)[None]
    model = flat_model(ModelSpec("lenet_dlg", (3, 32, 32), 10))
    weights: Tensor = model.layout.flatten(dict(model.module.named_parameters()))
    targets = one_hot(torch.tensor([0]), 10)
    return Update(local_update(model, LocalWork(), weights, image, targets), model.layout)


def draw(update: Update, path: Path) -> None:
    """Plot error against bytes."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of backend

    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    colours = plt.get_cmap("tab10")
    for index, (label, specs) in enumerate(_CURVES.items()):
        points = [measure(spec, update) for spec in specs]
        sizes, errors = [p.nbytes for p in points], [p.error for p in points]
        axes.plot(sizes, errors, "o-", ms=3, lw=1.2, color=colours(index), label=label)
    texts = []
    for spec in _POINTS:
        point = measure(spec, update)
        axes.plot(point.nbytes, point.error, "kx", ms=5)
        texts.append(axes.text(point.nbytes, point.error, spec.partition(":")[0], fontsize=8))
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=f"bytes of one payload ({update.layout.size:,} parameters)",
        ylabel="squared error / squared norm",
    )
    axes.grid(alpha=0.3, which="both", lw=0.4)
    axes.legend(fontsize=8, loc="lower left")
    adjust_text(texts, ax=axes, expand=(1.2, 1.6), arrowprops={"arrowstyle": "-", "lw": 0.5})
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def table(update: Update) -> pd.DataFrame:
    """Measure the examples of the catalogue and two more; one row each."""
    rows = []
    for spec in (*EXAMPLES, "absmax:bits=2", "topk:keep=0.1+stochastic:bits=4"):
        m = measure(spec, update)
        rows.append(
            {
                "quantizer": spec,
                "bytes": m.nbytes,
                "bits a parameter": f"{8 * m.nbytes / update.layout.size:.2f}",
                "entropy-coded bytes": m.coded,
                # A sign sends no scale, so its error would compare units.
                "error": "" if spec in ("sign", "error_feedback(sign)") else f"{m.error:.2g}",
                "cosine": f"{m.cosine:.3f}",
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    gradient = sample_update()
    table(gradient).to_csv(TABLE, index=False)
    draw(gradient, PLOT)
