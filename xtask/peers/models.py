"""Workloads in PyTorch: the same layers, weights and inputs as on our side.

`benches/peers` builds a workload and writes its parameters and inputs to a safetensors file; here
they are read back, strictly by name. A sample is the first dimension of everything. The loss of a
batch is the sum of its samples' losses, so that a sample's gradient needs no scaling back, except
for the U-Net's, which is the example's mean and so is scaled by `Task.scale`.
"""

import copy

import torch
from safetensors.torch import load_file
from torch import nn

from glyph_unet import GlyphUNet

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
LEARNING_RATE = 1e-3  # as in benches/peers/task.rs


class Lora(nn.Module):
    """A frozen linear layer and its low-rank adapter."""

    def __init__(self, inputs, outputs, rank):
        super().__init__()
        self.base = nn.Linear(inputs, outputs, bias=False)
        self.base.weight.requires_grad_(False)
        self.lora_a = nn.Linear(inputs, rank, bias=False)
        self.lora_b = nn.Linear(rank, outputs, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_b(self.lora_a(x))


def layer(spec):
    """One layer of workloads.toml."""
    spec = dict(spec)
    kind = spec.pop("kind")
    if kind == "conv2d":
        same, circular = spec.pop("same", False), spec.pop("circular", False)
        return nn.Conv2d(
            spec["inputs"],
            spec["outputs"],
            tuple(spec["kernel"]),
            stride=tuple(spec.get("stride", (1, 1))),
            padding="same" if same else tuple(spec.get("padding", (0, 0))),
            dilation=tuple(spec.get("dilation", (1, 1))),
            groups=spec.get("groups", 1),
            bias=spec.get("bias", False),
            padding_mode="circular" if circular else "zeros",
        )
    kinds = {
        "linear": lambda: nn.Linear(spec["inputs"], spec["outputs"], spec.get("bias", False)),
        "silu": nn.SiLU,
        "layer_norm": lambda: nn.LayerNorm(spec["features"]),
        "group_norm": lambda: nn.GroupNorm(spec["groups"], spec["channels"]),
        "embedding": lambda: nn.Embedding(spec["vocabulary"], spec["features"]),
        "lora": lambda: Lora(spec["inputs"], spec["outputs"], spec["rank"]),
    }
    return kinds[kind]()


class Task:
    """A model with its inputs. `given(at)` are the arguments of the model and what the loss
    compares its output with, for batch `at`; all of them have the samples first."""

    def __init__(self, workload, dtype, file):
        tensors = load_file(file)
        self.samples = workload["samples"]
        self.glyph = workload["layers"][0]["kind"] == "glyph_unet"
        if self.glyph:
            self.model = GlyphUNet(tensors["condition.style.weight"].shape[0])
        else:
            self.model = nn.Sequential(*map(layer, workload["layers"]))
        self.model.to(DTYPES[dtype])
        names = {name for name, _ in self.model.named_parameters()}
        weights = {name: tensors.pop(name) for name in list(tensors) if name in names}
        self.model.load_state_dict(weights, strict=True)
        self.data = tensors
        for name in ("characters", "styles"):
            self.data.update({k: v.long() for k, v in tensors.items() if k.startswith(name)})
        self.dx = workload.get("dx", False)
        # Brings a sample's gradient back to its own loss.
        self.scale = float(self.samples) if self.glyph else 1.0
        if not self.glyph and not self.data["x"].is_floating_point():
            self.data["x"] = self.data["x"].long()

    def given(self, at=0):
        """Arguments of the model, and the target or output gradient."""
        if self.glyph:
            names = ("x", "levels", "characters", "styles")
            return tuple(self.data[f"{n}.{at}"] for n in names), self.data[f"target.{at}"]
        x = self.data["x"]
        return (x.detach().requires_grad_(self.dx),), self.data["dy"]

    def sample_loss(self, output, against):
        """Sum over the samples given of each one's own loss."""
        if self.glyph:
            return (output - against).square().flatten(1).mean(1).sum()
        return (output * against).sum()

    def step(self, model=None, at=0):
        """Forward and backward; the gradients are left in the parameters."""
        model = model or self.model
        model.zero_grad(set_to_none=True)
        arguments, against = self.given(at)
        output = model(*arguments)
        if self.glyph:
            loss = (output - against).square().mean()
            loss.backward()
            return loss.detach()
        output.backward(against)
        return torch.dot(output.detach().flatten(), against.flatten())

    def train(self, steps):
        """Losses of as many steps of AdamW."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        losses = []
        for at in range(steps):
            losses.append(self.step(at=at).item())
            optimizer.step()
        return losses

    def truth(self):
        """Each sample's squared gradient norm: the sample alone, in double precision."""
        model = copy.deepcopy(self.model).double()
        arguments, against = self.given()
        wide = [a.detach().double() if a.is_floating_point() else a for a in arguments]
        norms = []
        for n in range(self.samples):
            model.zero_grad(set_to_none=True)
            output = model(*(a[n : n + 1] for a in wide))
            self.sample_loss(output, against[n : n + 1].double()).backward()
            gradients = [p.grad for p in model.parameters() if p.requires_grad]
            norms.append(sum(g.square().sum() for g in gradients).item())
        return norms
