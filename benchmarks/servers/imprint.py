"""What a server reads from updates of CIFAR images: one that plants weights, or a curious one.

All plans but ``--plan curious`` are of the ACTIVE threat model; that one needs ``--attack``.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attacker.presets import build_attack
from benchmarks.attack_trials import GALLERY, Truth, Victims, percent, score
from benchmarks.provenance import print_csv
from fl_sim.models import ModelSpec, build_model
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.observed.sums import sum_of
from fl_sim.plans import Inconsistent, ServerPlan, parse_plan
from fl_sim.testing import observe
from fl_sim.updates.local_update import Layout, LocalWork
from results.scores.scoring import score_batches

QUANTIZERS = (
    *("none", "bf16", "uniform:bits=8", "uniform:bits=4", "uniform:bits=2"),
    *("stochastic:bits=8", "stochastic:bits=4", "topk:keep=0.1", "topk:keep=0.01"),
    *("scaled_sign", "sign"),
)


def main() -> None:
    """Print docs/results/attacks/imprint.csv, or what another plan reads, or reads off sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, nargs="*", default=[8])
    parser.add_argument("--quantizers", nargs="*", default=QUANTIZERS)
    parser.add_argument("--plan", default="imprint")
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--attack", help="the plan's own, if absent")
    parser.add_argument("--clients", type=int, default=1, help="of whom only the sum is seen")
    arguments = parser.parse_args()
    plan = parse_plan(arguments.plan)
    if not (plan.reader or arguments.attack):
        parser.error(f"--attack is needed: the plan {plan.spec} has no attack of its own")
    spec = ModelSpec(plan.model(arguments.model), (3, 32, 32), 10)
    plan.check(spec)
    torch.set_num_threads(1)
    public = Victims(arguments.data_dir, 0, 0, arguments.seed).public.images
    start = initial_weights(spec, arguments.seed)
    server = Server(plan, spec, start, public, arguments.clients)
    attack = build_attack(arguments.attack or plan.reader)

    def every_row() -> Iterator[dict[str, object]]:
        for quantizer in arguments.quantizers:
            for batch in arguments.batches:
                work = LocalWork(batch_size=batch)
                count = arguments.images // (batch * arguments.clients) * arguments.clients
                held = Victims(arguments.data_dir, count, 0, arguments.seed).batches(work)
                seen = server.sees(held, quantizer, work)
                truth = server.reads(held)
                started = time.process_time()
                made = attack.reconstruct(seen, seed=arguments.seed)
                spent = time.process_time() - started
                scores = score(made, truth, public[-GALLERY:])
                yield {
                    "quantizer": quantizer,
                    "batch": batch,
                    **server.sum_columns(made, held, public[-GALLERY:]),
                    "bytes": seen[0].payload.nbytes,
                    "MSE < 1e-4 %": percent(scores.mse < 1e-4),
                    "MSE < 1e-2 %": percent(scores.mse < 1e-2),
                    "median MSE": f"{scores.mse.median():.2g}",
                    "median SSIM": f"{scores.ssim.median():.2f}",
                    "identified %": percent(scores.identified),
                    "labels %": percent(scores.labels_recovered),
                    "stalled": sum(one.status != "converged" for one in made),
                    "batches": len(made),
                    "CPU s": f"{spent:.0f}",
                }

    print_csv(every_row())


@dataclass(frozen=True)
class Server:
    """A server that carries out a plan, and sees the updates of clients alone or added up."""

    plan: ServerPlan
    spec: ModelSpec
    weights: Tensor
    public: Tensor
    clients: int

    def sees(self, held: Truth, quantizer: str, work: LocalWork) -> list[Observation]:
        """Return what the server sees of clients; consecutive ones are added up."""
        common = self.plan.weights(self.spec, self.weights, self.public)
        everyone = []
        for place in range(self.clients):
            facts = (self.spec, self.weights, self.public)
            own = common if self.clients == 1 else self.plan.weights_for(place, *facts)
            images, labels = (part[place :: self.clients].flatten(0, 1) for part in held)
            given = {"spec": self.spec, "weights": own, "server": self.plan.spec}
            everyone.append(observe(images, labels, quantizer, work, **given))
        if self.clients == 1:
            return everyone[0]
        images = work.images * (1 if self._one else self.clients)
        return [sum_of(alike, common, images) for alike in zip(*everyone, strict=True)]

    @property
    def _one(self) -> bool:
        """Whether the plan silences all clients of a sum but one."""
        return isinstance(self.plan, Inconsistent)

    def reads(self, held: Truth) -> Truth:
        """Return the images and labels that an attack on each sum should find."""
        if isinstance(self.plan, Inconsistent):
            return Truth(*(part[self.plan.target :: self.clients] for part in held))
        return Truth(*(part.unflatten(0, (-1, self.clients)).flatten(1, 2) for part in held))

    def sum_columns(
        self, made: Sequence[Reconstruction], held: Truth, gallery: Tensor
    ) -> dict[str, object]:
        """Return of sums how many clients they are of, and the images found with their client."""
        if self.clients == 1:
            return {}
        own = ""
        if not self._one:
            images = torch.cat([one.images for one in made]).unflatten(0, (len(held.images), -1))
            labels = torch.cat([one.labels for one in made]).unflatten(0, (len(held.images), -1))
            own = percent(score_batches(images, labels, *held, gallery).mse < 1e-2)
        return {"clients": self.clients, "in the share of their client %": own}


def initial_weights(spec: ModelSpec, seed: int) -> Tensor:
    """Return the weights ``(size,)`` before anything is planted in them."""
    module = build_model(spec, seed)
    return Layout.of(module).flatten({k: p.detach() for k, p in module.named_parameters()})


if __name__ == "__main__":
    main()
