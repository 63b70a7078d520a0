"""How each peer takes per-sample norms and sketches beside the parameters' gradients.

A method's `run()` is one pass: forward, backward keeping the parameters' gradients, and what the
peer can tell of each sample. `norms()` is each sample's squared gradient norm over all trained
parameters. Where a peer keeps per-sample gradients but no sketch, the sketch is taken here, 16 × 16
numbers per weight, as its user would have to.
"""

import torch

SIDE = 16


class Plain:
    """PyTorch alone."""

    def __init__(self, task):
        self.task = task
        self.model = task.model

    def run(self):
        return self.task.step(self.model)

    def norms(self):
        raise NotImplementedError("no per-sample gradients")


class Truth(Plain):
    """Each sample by itself, in double precision."""

    def norms(self):
        return torch.tensor(self.task.truth())


def signs(rows, seed):
    """A `±1/√k` matrix, `[rows, k]`."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (rows, SIDE), generator=random) * (2.0 / SIDE**0.5) - SIDE**-0.5


class Materialised(Plain):
    """Of peers that keep the per-sample gradient of every parameter in a field of it."""

    field = ""

    def __init__(self, task):
        super().__init__(task)
        self.trained = [p for p in task.model.parameters() if p.requires_grad]
        self.sides = {}
        for at, p in enumerate(self.trained):
            if p.dim() > 1:
                columns = p[0].numel()
                pair = signs(p.shape[0], 2 * at), signs(columns, 2 * at + 1)
                self.sides[p] = [side.to(p.dtype) for side in pair]

    def check(self):
        """What it does not know is missing without a word."""
        missing = set()
        for module in self.task.model.modules():
            for p in module.parameters(recurse=False):
                if p.requires_grad and getattr(p, self.field, None) is None:
                    missing.add(type(module).__name__)
        if missing:
            names = ", ".join(sorted(missing))
            raise RuntimeError(f"keeps no per-sample gradient of {names}, without a word")

    def run(self):
        loss = self.backward()
        self.check()
        norms, self.sketches = 0, []
        for p in self.trained:
            each = getattr(p, self.field)
            norms = norms + each.flatten(1).square().sum(1)
            if p in self.sides:
                rows, columns = self.sides[p]
                each = each.flatten(2)
                self.sketches.append(rows.T @ (each @ columns))
        self.sq_norm = norms
        for p in self.trained:
            delattr(p, self.field)
        return loss

    def norms(self):
        self.run()
        return self.sq_norm


class Opacus(Materialised):
    field = "grad_sample"

    def __init__(self, task):
        from opacus import GradSampleModule

        super().__init__(task)
        self.model = GradSampleModule(task.model, loss_reduction="sum")

    def backward(self):
        return self.task.step(self.model)


class BackPack(Materialised):
    field = "grad_batch"

    def __init__(self, task):
        from backpack import backpack, extend
        from backpack.extensions import BatchGrad

        super().__init__(task)
        self.model = extend(task.model)
        self.recording = lambda: backpack(BatchGrad())

    def backward(self):
        with self.recording():
            return self.task.step(self.model)


def inputs_with_rows(task):
    """Bergson wants `[N, rows, features]`."""
    for name in ("x", "dy"):
        tensor = task.data.get(name)
        if tensor is not None and tensor.is_floating_point() and tensor.dim() == 2:
            task.data[name] = tensor[:, None]


class Bergson(Plain):
    """Sketches in its backward hooks. Norms it has only of whole gradients."""

    def __init__(self, task):
        super().__init__(task)
        inputs_with_rows(task)
        self.collector = self.collect(SIDE)

    def collect(self, side):
        from bergson.collector.gradient_collectors import StreamingGradientCollector
        from bergson.gradients import GradientProcessor

        processor = GradientProcessor(projection_dim=side, include_bias=True)
        return StreamingGradientCollector(
            model=self.model, processor=processor, dtype=next(self.model.parameters()).dtype
        )

    def run(self):
        with self.collector.with_batch(None):
            loss = self.task.step(self.model)
        self.check(self.collector.mod_grads)
        return loss

    def check(self, gradients):
        """What it does not hook is missing without a word."""
        modules = dict(self.model.named_modules())
        trained = {n.rpartition(".")[0] for n, p in self.model.named_parameters() if p.requires_grad}
        missing = sorted({type(modules[name]).__name__ for name in trained - gradients.keys()})
        if missing:
            raise RuntimeError(f"records nothing of {', '.join(missing)}, without a word")

    def norms(self):
        collector = self.collect(None)
        with collector.with_batch(None):
            self.task.step(self.model)
        self.check(collector.mod_grads)
        trained = {n.rpartition(".")[0] for n, p in self.model.named_parameters() if p.requires_grad}
        each = (g for name, g in collector.mod_grads.items() if name in trained)
        return sum(g.flatten(1).square().sum(1) for g in each)


class WithIds(torch.nn.Module):
    """Hands dattri-LLM the samples' ids, so that it need not hash their content."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, *arguments):
        return self.model(*arguments)


class Dattri(Plain):
    """Captures factors; norms and sketches come from them afterwards."""

    sketch_alone = False

    def __init__(self, task):
        from dattri_llm import REGISTER_ALL, HookManager, HookManagerConfig
        from dattri_llm.gradient import CaptureCallback, ops

        super().__init__(task)
        self.ops = ops
        wrapped = WithIds(task.model)
        ids = torch.arange(task.samples)
        self.model = wrapped
        self.captured = CaptureCallback()
        project = dict(proj_dim=SIDE, proj_type="rademacher", proj_max_batch_size=32)
        # Normalisations have no two factors to project.
        dense = dict(project, style="dense", proj_dim=SIDE * SIDE)
        self.projection = {"__default__": dict(project, style="logra")}
        for name, module in wrapped.named_modules():
            if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
                self.projection[name] = dense
        capture = dict(capture_style="auto", projection_kwargs=self.projection)
        config = HookManagerConfig(
            linear_io=REGISTER_ALL, **(capture if self.sketch_alone else {})
        )
        self.manager = HookManager(
            wrapped, config=config, callbacks=[self.captured], sample_id_key=0
        )
        given = task.given

        def with_ids(at=0):
            arguments, against = given(at)
            return (ids, *arguments), against

        task.given = with_ids

    def capture(self):
        self.captured.record = None
        with self.manager.collect():
            loss = self.task.step(self.model)
        if self.captured.record is None:
            raise RuntimeError("no record was captured")
        self.check(self.captured.record.gradient.data)
        return loss, self.captured.record.gradient

    def check(self, data):
        parameters = self.model.named_parameters()
        trained = {n.rpartition(".")[0] for n, p in parameters if p.requires_grad}
        missing = sorted(trained - data.keys())
        if missing:
            raise RuntimeError(f"records nothing of {', '.join(missing)}")

    def sq_norms(self, gradient):
        each = gradient.data.items()
        return sum(self.ops.grad_norm_sq(f, gradient.layer_types[name]) for name, f in each)

    def run(self):
        loss, gradient = self.capture()
        if not self.sketch_alone:
            self.sq_norm = self.sq_norms(gradient)
            gradient = gradient.project(None, self.projection, capture_style="auto")
        self.sketches = gradient
        return loss

    def norms(self):
        return self.sq_norms(self.capture()[1])


class DattriSketch(Dattri):
    """Its own way to sketch: factors are projected as they are captured; no norms."""

    sketch_alone = True


class Trak(Plain):
    """Per-sample gradients by `vmap`, one projection of the whole gradient."""

    def __init__(self, task):
        from trak.gradient_computers import FunctionalGradientComputer
        from trak.modelout_functions import AbstractModelOutput
        from trak.projectors import BasicProjector, ProjectionType

        super().__init__(task)
        trained = [n for n, p in task.model.named_parameters() if p.requires_grad]

        class Output(AbstractModelOutput):
            def __init__(self):
                pass

            @staticmethod
            def get_output(model, weights, buffers, *batch):
                one = tuple(tensor[None] for tensor in batch)
                output = torch.func.functional_call(model, (weights, buffers), one[:-1])
                return task.sample_loss(output, one[-1])

            def get_out_to_loss_grad(self, *_):
                raise NotImplementedError

        parameters = list(task.model.parameters())
        count = sum(p.numel() for p in parameters if p.requires_grad)
        dtype = parameters[0].dtype
        self.computer = FunctionalGradientComputer(
            task.model, Output(), count, dtype, torch.device("cpu"), grad_wrt=trained
        )
        self.project = lambda: BasicProjector(
            count, SIDE * SIDE, 0, ProjectionType.rademacher, torch.device("cpu"), dtype=dtype
        )
        self.projector = None

    def gradients(self):
        arguments, against = self.task.given()
        each = self.computer.compute_per_sample_grad((*(a.detach() for a in arguments), against))
        return torch.cat([g.flatten(1) for g in each.values()], 1)

    def run(self):
        # The gradient by which the model is trained; it is no part of TRAK.
        loss = self.task.step(self.model)
        each = self.gradients()
        self.projector = self.projector or self.project()
        self.sq_norm = each.square().sum(1)
        self.sketches = self.projector.project(each, 0)
        return loss

    def norms(self):
        # Of each sample's own loss already.
        return self.gradients().square().sum(1) / self.task.scale**2


METHODS = {
    "plain": Plain,
    "truth": Truth,
    "opacus": Opacus,
    "backpack": BackPack,
    "bergson": Bergson,
    "dattri": Dattri,
    "dattri_sketch": DattriSketch,
    "trak": Trak,
}
