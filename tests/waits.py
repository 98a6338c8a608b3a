"""Where would Python wait for a GPU? Asked on a CPU, by tensors that are said to lie on a device of their own."""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import stts_mini

ROOT = str(Path(stts_mini.__file__).parent)
GPU = torch.device("cpu", 0)  # tensors of a CPU have no number: whoever has one plays the GPU
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "unique", "unique_consecutive"}
MADE = {torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.tensor, torch.as_tensor}


class Waits(TorchFunctionMode):
    """`found` lists the functions of ours that wait, one entry a wait: for a value or a size that the device works out;
    or for the device to take a tensor, unless `.to` has `non_blocking`. What an operation makes of a tensor on the
    device is there, too."""

    def __init__(self):
        super().__init__()
        self.found, self.there, self.alive = [], set(), []
        self.operations = Operations(self)

    def __enter__(self):
        self.operations.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.operations.__exit__(*error)

    def has(self, x):
        return isinstance(x, Tensor) and x.untyped_storage().data_ptr() in self.there

    def put(self, tree):
        """On the device; for ever, so that no other tensor gets this one's place in memory."""
        for x in tree_leaves(tree):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr():
                self.alive.append(x.untyped_storage())
                self.there.add(x.untyped_storage().data_ptr())
        return tree

    def wait(self, what):
        frame = sys._getframe(1)
        while not frame.f_code.co_filename.startswith(ROOT):
            frame = frame.f_back
        self.found.append(f"{frame.f_code.co_name}: {what}")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name, x = kwargs or {}, getattr(func, "__name__", ""), args[0] if args else None
        if func == Tensor.device.__get__:
            return GPU if self.has(x) else func(x)
        if name in ("cpu", "tolist", "numpy") and self.has(x):
            self.wait(name)
            back = x.detach().clone()
            self.there.discard(back.untyped_storage().data_ptr())
            return func(back)
        out = func(*args, **kwargs)
        goes = any(to == GPU if isinstance(to, torch.device) else self.has(to) for to in (*args[1:], *kwargs.values()))
        if func is Tensor.to and goes and not self.has(x):
            if "non_blocking" not in kwargs:
                self.wait(name)
            return self.put(out.clone())
        if func in MADE and kwargs.get("device") == GPU:
            if func in (torch.tensor, torch.as_tensor) and not self.has(x):
                self.wait(name)
                out = out.clone()
            return self.put(out)
        return out


class Operations(TorchDispatchMode):
    """Every operation, those of the backward pass included."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(map(self.waits.has, inputs)):
            mask = name.startswith("index") and any(
                isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1])
            )
            other = any(x.dim() and x.numel() and not self.waits.has(x) for x in inputs)  # a GPU would refuse it
            if name in READS or mask or other or str(func) == "aten.repeat_interleave.Tensor":
                self.waits.wait(name)
            self.waits.put(out)
        return out
