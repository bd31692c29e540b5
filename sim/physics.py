"""The laws of one simulated GPU: what steps cost, how tasks share it, and what fits its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from splitwiser.models.cost import CostModel
from splitwiser.models.gpu import Gpu
from splitwiser.models.granted import sm_shares
from splitwiser.models.llm import Llm
from splitwiser.models.memory import MemoryPlan, plan_memory
from splitwiser.models.power import Power
from splitwiser.models.profile import Profile
from splitwiser.models.sharing import sharing_for
from splitwiser.sim.decoding import Costs
from splitwiser.sim.deployment import Deployment, Workers
from splitwiser.sim.device import Rates

ONE_PROCESS = ("streams", "green_contexts")  # in which the workers are threads of one process


@dataclass(frozen=True, slots=True)
class Physics:
    """What steps cost on a simulated GPU for each group of workers, how tasks share it, and its power
    limit, where that is known.
    """

    costs: Callable[[Workers], Costs]
    sharing: Rates
    power: Power | None = None

    @classmethod
    def of(cls, deployment: Deployment, llm: Llm, gpu: Gpu, profile: Profile) -> Physics:
        """The laws that a profile states; `DoesNotFit` where green contexts do not fit the GPU."""
        parts = granted(deployment, gpu)

        def costs(group: Workers) -> Costs:
            return CostModel(
                llm,
                gpu,
                profile,
                sm_share=parts[group],
                eager=deployment.enforce_eager,
                sharing=deployment.sharing,
            )

        sharing = sharing_for(deployment.sharing, profile, decode_first=deployment.decode_first)
        power = Power.of(profile)
        return cls(costs, sharing, power if power.known else None)


def granted(deployment: Deployment, gpu: Gpu) -> dict[Workers, float]:
    """The part of the SMs that a process of each group may use: the mean, where they are unequal.

    Raises `DoesNotFit` where green contexts do not fit the GPU.
    """
    groups = list(deployment.each())
    shares = sm_shares(deployment.sharing, [group.sm_percent for group in groups], gpu)
    return {
        group: fmean(share for other, share in zip(groups, shares, strict=True) if other == group)
        for group in deployment.workers
    }


def memory_plan(
    deployment: Deployment, llm: Llm, gpu: Gpu, profile: Profile, longest_prompt: int = 0
) -> MemoryPlan:
    """What the deployment puts into the GPU's memory; `blocks` is the size of one of its `pools`.

    Without chunking a prompt runs in one step however long it is, and static batches pad all rows
    to the longest: so activations have to hold *longest_prompt* (tokens) too.

    Raises `DoesNotFit` with the sum written out.
    """
    groups = list(deployment.each())
    tokens = [most_tokens(group, min(longest_prompt, llm.max_context)) for group in groups]
    seqs = [group.max_num_seqs for group in groups]
    if deployment.sharing in ONE_PROCESS:
        tokens, seqs = [sum(tokens)], [sum(seqs)]
    own_pools = any(group.phase == "both" for group in groups)
    return plan_memory(
        llm,
        gpu,
        profile,
        processes=len(tokens),
        weight_copies=1 if deployment.weights == "shared" else len(tokens),
        prefill_tokens=tokens,
        max_num_seqs=seqs,
        utilisation=deployment.gpu_memory_utilization,
        block_size=deployment.block_size,
        num_gpu_blocks=deployment.num_gpu_blocks,
        pools=len(groups) if own_pools else 1,
    )


def most_tokens(group: Workers, longest_prompt: int) -> int:
    """The most tokens of one step of a process."""
    if group.phase == "decode":
        return group.max_num_seqs
    if group.phase == "both" and group.scheduler == "chunked":
        return group.max_num_batched_tokens
    rows = group.max_num_seqs if group.phase == "both" and group.scheduler == "static" else 1
    return max(group.max_num_batched_tokens, rows * longest_prompt)
