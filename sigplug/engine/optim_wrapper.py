"""Mixed precision where mmengine's ``AmpOptimWrapper`` refuses to work."""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

DTYPES = dict(bfloat16=torch.bfloat16, float16=torch.float16)


class CPUAmpOptimWrapper(AmpOptimWrapper):
    """Optimizer wrapper for mixed precision on the CPU.

    mmengine's ``AmpOptimWrapper`` insists on an accelerator. bfloat16 has the
    range of float32, so that no loss scaling is needed; float16 gets a
    dynamic loss scale, and is slow on a processor without half-precision
    arithmetic of its own.

    A config names it by its full path,
    ``type='sigplug.engine.optim_wrapper.CPUAmpOptimWrapper'``.

    Args:
        dtype (str | torch.dtype): ``'bfloat16'`` or ``'float16'``.
            Defaults to ``'bfloat16'``.
        **kwargs: As for :class:`mmengine.optim.OptimWrapper`.

    Raises:
        ValueError: torch has no autocast to ``dtype`` on the CPU.
    """

    def __init__(self,
                 dtype: str | torch.dtype = 'bfloat16',
                 **kwargs: Any) -> None:
        # Not super(), which asserts that there is an accelerator.
        OptimWrapper.__init__(self, **kwargs)
        found = DTYPES.get(str(dtype).removeprefix('torch.'))
        if found is None:
            raise ValueError(
                "dtype must be 'bfloat16' or 'float16', the types of torch's "
                f'autocast on the CPU, but got {dtype!r}')
        has_scaler = hasattr(torch.amp, 'GradScaler')
        scale = found == torch.float16
        # Older versions only warn and train in float32.
        if scale and not has_scaler:
            raise ValueError(
                "dtype='float16' needs torch 2.3 or later on the CPU, but "
                f"this is {torch.__version__}: use 'bfloat16'")
        self.cast_dtype = found
        self._scale_update_param = None
        self.loss_scaler = (
            torch.amp.GradScaler('cpu', enabled=scale) if has_scaler else
            torch.cuda.amp.GradScaler(enabled=False))

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enable autocast, beside gradient accumulation."""
        with OptimWrapper.optim_context(self, model), torch.autocast(
                'cpu', dtype=self.cast_dtype):
            yield
