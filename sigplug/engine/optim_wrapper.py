"""Mixed precision where mmengine's ``AmpOptimWrapper`` refuses to work."""
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn


class CPUAmpOptimWrapper(OptimWrapper):
    """Optimizer wrapper for mixed precision in bfloat16 on the CPU.

    mmengine's ``AmpOptimWrapper`` insists on an accelerator. bfloat16 has the
    range of float32, so that no loss scaling is needed.

    A config names it by its full path,
    ``type='sigplug.engine.optim_wrapper.CPUAmpOptimWrapper'``.

    Args:
        **kwargs: As for :class:`mmengine.optim.OptimWrapper`.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enable autocast, beside gradient accumulation.

        Args:
            model (nn.Module): The model that is trained.
        """
        with super().optim_context(model), torch.autocast(
                'cpu', dtype=torch.bfloat16):
            yield
