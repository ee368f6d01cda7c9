"""How Lightning starts the other processes of a run, and takes signals, under a command of ours."""

import signal
import threading
from collections.abc import Callable

from lightning import Callback, Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from semcorr.core import interrupt
from semcorr.core.ranks import ProcessWatch


class WatchedLauncher(_SubprocessScriptLauncher):
    """Lightning's own, whose processes are watched so that none waits for one that has gone.

    Lightning looks every five seconds and then kills all of them, itself included, without a word.
    """

    def launch(
        self, function: Callable[..., object], *args: object, trainer: Trainer | None = None, **kwargs: object
    ) -> object:
        """Run `function`, in all processes. What it raises because another one has gone says so."""
        try:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        except RuntimeError as error:
            guard = interrupt.current_guard()
            if guard and guard.ranks and (lost := guard.ranks.explain(error)):
                raise lost from error
            raise

    def _call_children_scripts(self) -> None:
        super()._call_children_scripts()
        if guard := interrupt.current_guard():
            guard.watch(ProcessWatch(self.procs, guard.end))
            self.procs = []  # so that Lightning has none to look after


class KeepSignals(Callback):
    """Take SIGTERM back from Lightning, which ends with exit code 0 after it, or waits in it for other processes.

    SIGUSR1, by which SLURM says that the time is nearly over, stays Lightning's: it saves and asks to be run again.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM) if interrupt.current_guard() else None

    def on_sanity_check_start(self, *args: object) -> None:
        """Before training begins."""
        self._keep()

    def on_train_start(self, *args: object) -> None:
        """As it begins."""
        self._keep()

    def on_test_start(self, *args: object) -> None:
        """As scoring does."""
        self._keep()

    def _keep(self) -> None:
        if self.handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)


def watch_processes(trainer: Trainer) -> None:
    """Let a trainer that will start other processes do it by our launcher. Under torchrun others start them."""
    strategy = trainer.strategy
    launcher = strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        strategy._launcher = WatchedLauncher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
