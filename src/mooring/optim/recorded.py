"""What an optimizer tells of its steps. What is measured is in ``mooring.step.record``."""

from __future__ import annotations

import torch

from mooring.optim.telemetry import summarise
from mooring.step.record import Recorder


class Recorded(torch.optim.Optimizer):
    """The part of :class:`mooring.optim.base.Optimizer` that records steps."""

    _recorder: Recorder

    def record(self, every: int | None = 10, *, drift: bool = False) -> None:
        """Record the next step and then one of ``every`` steps, for :meth:`telemetry`.

        A recorded step measures itself in passes of its own, so recording changes no bit of weights or state. It makes
        some forty passes over each batch and holds up to six copies of it meanwhile; other steps cost nothing more.
        Recording belongs to this object: it is no part of checkpoints, outlives ``load_state_dict``, and a copy or an
        unpickled optimizer does not record.

        Args:
            every: distance of recorded steps; None stops recording and forgets what was recorded.
            drift: measure drift of tensors without an anchor too, from where they are at their first recorded step.
                Keeps a copy of those tensors.

        Raises:
            ValueError: if ``every`` is not a whole number above 0.

        Example:
            >>> import torch, mooring as mo
            >>> model = torch.nn.Linear(4, 2)
            >>> opt = mo.AdamSPD(model.parameters(), lr=1e-3)
            >>> opt.record(every=10)
            >>> model(torch.ones(3, 4)).sum().backward()
            >>> opt.step()
            >>> sorted(opt.telemetry())[-1]
            'model/weights/norm'
        """
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ValueError(f"every must be a whole number above 0, or None to stop recording, got {every!r}")
        self._recorder.start(every, drift)

    @property
    def recorded(self) -> bool:
        """Whether the latest step was recorded."""
        return self._recorder.fresh

    def telemetry(self, per_tensor: bool = False) -> dict[str, float]:
        """What the last recorded step did, as plain numbers: ``group/rule/metric`` -> value.

        Fetched here, in one transfer from the device; a second call before the next step costs none. The first part of
        a name is ``model`` or the group: its ``name``, else ``group0``. What a step gives no value for, such as the
        direction of a tensor that is zero, is left out. docs/telemetry.md has every metric's formula.

        Counters of rare events, such as steps on which the cap of stable decay bound, count every step since the
        optimizer was made, and are there without :meth:`record`.

        Args:
            per_tensor: also ``group/rule/metric/parameter`` of every tensor that took part in the step.

        Raises:
            RuntimeError: if :meth:`record` was not called and nothing was counted.
        """
        if self._recorder.every is None and not self._recorder.counts:
            raise RuntimeError(f"{type(self).__name__} records nothing yet; call record(every=10) before the steps")
        tables, counts = self._recorder.fetch()
        return summarise(tables, counts, self.param_groups, self._recorder.last, per_tensor)
