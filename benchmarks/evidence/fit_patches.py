"""Fit the mixture of `fl_sim.observed.patches` on photographs that installed packages carry."""

import argparse
import json
from base64 import b64encode
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage import data
from skimage.transform import resize
from sklearn.datasets import load_sample_images
from sklearn.mixture import GaussianMixture

Values = NDArray[np.floating]

_SMALLER = (4, 6, 8, 12, 16)  # small pictures show scenes, not the details of photographs
_LEAST_VARIANCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=5, help="pixels of a patch")
    parser.add_argument("--components", type=int, default=40)
    parser.add_argument("--patches", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    seen = draw_patches(arguments.side, arguments.patches, np.random.default_rng(arguments.seed))
    mixture = GaussianMixture(
        arguments.components,
        reg_covar=_LEAST_VARIANCE,
        max_iter=25,
        tol=1e-2,
        init_params="k-means++",
        random_state=arguments.seed,
    ).fit(seen)
    lower = np.linalg.cholesky(mixture.covariances_)
    rows, columns = np.tril_indices(seen.shape[1])
    tree = {
        "side": arguments.side,
        "log_weights": encoded(np.log(mixture.weights_)),
        "means": encoded(mixture.means_),
        "cholesky": encoded(lower[:, rows, columns]),
    }
    arguments.out.write_text(json.dumps(tree, indent=0) + "\n")
    print(f"{len(seen):,} patches, {mixture.score(seen) / seen.shape[1]:.3f} nats a value")


def photographs() -> list[Values]:
    """Return the colour photographs that scikit-learn and scikit-image carry, in [0, 1]."""
    scenes = [*load_sample_images().images, data.astronaut(), data.chelsea(), data.coffee()]
    return [scene / 255 for scene in (*scenes, data.rocket(), data.stereo_motorcycle()[0])]


def draw_patches(side: int, count: int, rng: np.random.Generator) -> Values:
    """Draw ``(count, 3 * side**2)`` patches of smaller copies, exposed and tinted at random."""
    drawn, scenes = [], photographs()
    each = count // (len(scenes) * len(_SMALLER))
    for scene in scenes:
        for factor in _SMALLER:
            height, width = scene.shape[0] // factor, scene.shape[1] // factor
            small = resize(scene, (height, width), anti_aliasing=True)
            rows = rng.integers(0, height - side + 1, each)
            columns = rng.integers(0, width - side + 1, each)
            patches = np.stack(
                [small[r : r + side, c : c + side] for r, c in zip(rows, columns, strict=True)]
            )
            mirrored = rng.random(each) < 0.5
            patches[mirrored] = patches[mirrored][:, :, ::-1]
            contrast = rng.uniform(0.7, 1.3, (each, 1, 1, 1))
            brightness = 0.5 + rng.uniform(-0.1, 0.1, (each, 1, 1, 1))
            tint = rng.normal(0, 0.03, (each, 1, 1, 3))
            drawn.append(np.clip(contrast * (patches - 0.5) + brightness + tint, 0, 1))
    return np.concatenate(drawn).transpose(0, 3, 1, 2).reshape(-1, 3 * side**2)


def encoded(values: Values) -> str:
    """Return numbers as float16 in base 64."""
    return b64encode(values.astype("<f2").tobytes()).decode()


if __name__ == "__main__":
    main()
