"""Cases of expert parallelism, and one process's plain computation of their steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from workers.config.adapter import AdapterSpec
from workers.config.data import DataSpec
from workers.config.losses import LossSpec
from workers.config.model import ModelSpec
from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.batches import Batch
from workers.injection.adapter import Adapter, LayerRecord
from workers.injection.inject import inject
from workers.layers.routing.base import Routing
from workers.losses import auxiliary as losses
from workers.losses.cross_entropy import IGNORED
from workers.models.base import Base

STEPS = 3
ALL_LOSSES = LossSpec(
    load_balance_weight=0.1,
    z_loss_weight=0.01,
    contrastive_weight=0.1,
    contrastive_temperature=0.3,
    contrastive_anchors=100_000,
)


@dataclass(frozen=True)
class Case:
    """One adapter and its rows."""

    name: str
    adapter: dict[str, object] = field(default_factory=dict)
    skewed: bool = False
    """All tokens to the first two experts, which live on the first worker."""
    length: int = 7
    only: str = "tokens weights"
    """The exchanges that it is for."""
    recomputed: bool = False
    """Activations are checkpointed; the plain computation keeps them."""

    @property
    def spec(self) -> TrainSpec:
        """The whole specification."""
        shape = {"num_experts": 8, "top_k": 2, "rank": 3, "dropout": 0.0, **self.adapter}
        contrastive = {"contrastive_weight": 0.0} if shape.get("shared_a") else {}
        return TrainSpec(
            model=ModelSpec(path="random", activation_checkpointing=self.recomputed),
            adapter=AdapterSpec.model_validate(shape),
            loss=ALL_LOSSES.model_copy(update=contrastive),
            data=DataSpec(train="-", validation="-"),
            optimizer=OptimizerSpec(
                lr=2.5e-4,
                loraplus_lr_ratio=2.0,
                router_lr_ratio=0.5,
                schedule="constant",
                max_grad_norm=0.5,
            ),
        )


CASES = [
    Case("block"),
    Case("linear", {"experts": "linear"}),
    Case("skewed", {"top_k": 1, "gates": "raw"}, skewed=True),
    Case("skewed linear", {"top_k": 1, "experts": "linear"}, skewed=True),
    Case("many tokens", {"rank": 8}, length=70),
    Case("top_p", {"routing": "top_p", "top_p": 0.5}),
    Case("switch", {"routing": "switch", "expert_capacity": 2}),
    Case("residual", {"gates": "residual", "train_also": ["embed_tokens", "lm_head"]}),
    Case("shared A", {"shared_a": True, "train_tokens": [3, 5, 8]}),
    Case("experts by layer", {"num_experts": [4, 8]}),
    Case("dora", {"use_dora": True, "experts": "linear"}, only="weights"),
]
RECOMPUTED = [
    replace(case, name=f"{case.name}, recomputed", recomputed=True)
    for case in CASES
    if case.name in ("block", "linear", "experts by layer", "dora")
]


def build(case: Case, dtype: torch.dtype, *, checkpointing: bool = False) -> tuple[Base, Adapter]:
    """A tiny random Llama with the case's adapter, the same in every process."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).to(dtype).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    adapter = inject(model, case.spec.adapter, seed=1)
    for name, parameter in adapter.named_parameters():
        parameter.data = parameter.data.to(dtype)
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
        if "router" in name and case.skewed:
            parameter.data.zero_()
            parameter.data[:2] = 50 * torch.randn(1, parameter.shape[1]).to(dtype)
            parameter.data[1] *= -1
    return Base(model, None, torch.device("cpu")), adapter


def batches(case: Case, workers: int, step: int) -> list[Batch]:
    """Each worker's rows of one step: of different lengths, padded, targets at the end."""
    generator = torch.Generator().manual_seed(step)
    made = []
    for worker in range(workers):
        length = case.length + worker
        ids_BS = torch.randint(4, 32, (2, length), generator=generator)
        mask_BS = torch.ones_like(ids_BS)
        mask_BS[1, length - 1 - worker :] = 0
        labels_BS = ids_BS.masked_fill(mask_BS == 0, IGNORED)
        labels_BS[:, : length // 2] = IGNORED
        made.append(Batch(ids_BS, mask_BS, labels_BS))
    return made


@dataclass
class Trace:
    """What four steps gave."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the first step."""
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """After the last."""

    def compare(self, other: "Trace", tolerance: float) -> float:
        """The largest difference; an AssertionError names the first that is too large."""
        worst = 0.0
        for kind in ("losses", "norms", "gradients", "parameters"):
            ours, theirs = getattr(self, kind), getattr(other, kind)
            if isinstance(ours, dict):
                pairs = [(name, ours[name], theirs[name]) for name in theirs]
            else:
                pairs = [("", torch.tensor(ours), torch.tensor(theirs))]
            for name, one, two in pairs:
                error = float((one - two).abs().max() / max(1.0, float(two.abs().max())))
                assert error <= tolerance, f"{kind} {name}: {error}"
                worst = max(worst, error)
        return worst


def reference(case: Case, workers: int, dtype: torch.dtype) -> Trace:
    """One process, all rows, torch's own functions for the step: nothing of workers.parallel or
    workers.train is used."""
    base, adapter = build(case, dtype)
    named = dict(adapter.named_parameters())
    groups = [{"params": [one], "lr": _rate(name)} for name, one in named.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    trace = Trace()
    for step in range(STEPS):
        loss = _loss(case, base, adapter, batches(case, workers, step))
        optimizer.zero_grad()
        loss.backward()
        if not step:
            trace.gradients = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
        trace.losses.append(loss.item())
        trace.norms.append(nn.utils.clip_grad_norm_(named.values(), 0.5).item())
        optimizer.step()
    trace.parameters = {name: one.detach().clone() for name, one in named.items()}
    return trace


def _rate(name: str) -> float:
    if not name.startswith("layers."):  # a copy of a whole weight
        return 5e-5
    kind = name.rpartition(".")[2]
    return {"weight": 1.25e-4, "lora_A": 2.5e-4, "lora_B": 5e-4, "lora_magnitude": 5e-4}[kind]


def _loss(case: Case, base: Base, adapter: Adapter, parts: Sequence[Batch]) -> Tensor:
    spec = case.spec.loss
    total, targets, recorded = torch.zeros((), dtype=torch.float64), 0, []
    for batch in parts:
        with adapter.record(batch.attention_mask_BS) as records:
            logits = base.model(batch.input_ids_BS, attention_mask=batch.attention_mask_BS).logits
        recorded.append(records)
        next_labels = nn.functional.pad(batch.labels_BS[:, 1:], (0, 1), value=-100)
        total = total + nn.functional.cross_entropy(
            logits.flatten(0, 1), next_labels.flatten(), reduction="sum"
        )
        targets += int((next_labels != -100).sum())
    tokens = [int(batch.attention_mask_BS.sum()) for batch in parts]
    layers = list(zip(*recorded, strict=True))
    balance = torch.stack([_balance(case, layer) for layer in layers]).mean()

    def local(loss: Callable[..., Tensor]) -> Tensor:
        each = [
            torch.stack([loss(record) for record in records]).mean() * count / sum(tokens)
            for records, count in zip(recorded, tokens, strict=True)
        ]
        return torch.stack(each).sum()

    z = local(lambda one: losses.z_loss(_seen(one), spec))
    loss = total / targets + spec.load_balance_weight * balance + spec.z_loss_weight * z
    if spec.contrastive_weight:
        contrast = local(lambda one: losses.contrastive(_seen(one), spec))
        loss = loss + spec.contrastive_weight * contrast
    return loss


def _balance(case: Case, layer: Sequence[object]) -> Tensor:
    """Over the tokens of all workers at once."""
    logits_TE, expert_TK, mask_T = (
        torch.cat([getattr(one.routing, name) if name else one.mask_T for one in layer])  # type: ignore[attr-defined]
        for name in ("logits_TE", "expert_TK", "")
    )
    if case.spec.adapter.routing == "switch":
        expert_TK = logits_TE.argmax(-1, keepdim=True)
    routing = Routing(logits_TE, expert_TK, expert_TK)
    return losses.load_balance(losses.RoutedLayer(routing, mask_T), case.spec.loss)


def _seen(record: LayerRecord) -> losses.RoutedLayer:
    return losses.RoutedLayer(record.routing, record.mask_T, record.rank_space)
