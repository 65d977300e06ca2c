"""An optimizer around another one: one set of groups, one state, so whoever holds either changes both."""

from __future__ import annotations

from typing import Any

import torch


class Around:
    """Shares the groups, state and defaults of ``base``. To be listed before ``torch.optim.Optimizer``."""

    base: torch.optim.Optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's."""
        return self.base.param_groups

    @property
    def state(self) -> Any:
        """The wrapped optimizer's."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's."""
        return self.base.defaults

    def add_options(self, options: dict[str, Any]) -> None:
        """Give every group the options that it lacks, now and when a group is added."""
        for option, value in options.items():
            self.base.defaults.setdefault(option, value)
            for group in self.base.param_groups:
                group.setdefault(option, value)


def required(base: Any) -> torch.optim.Optimizer:
    """``base``, if it is an optimizer.

    Raises:
        TypeError: if it is none; a class that was not called is told so.
    """
    if not isinstance(base, torch.optim.Optimizer):
        what = f"the class {base.__name__}, not called" if isinstance(base, type) else type(base).__name__
        raise TypeError(f"base must be a torch.optim.Optimizer, got {what}")
    return base
