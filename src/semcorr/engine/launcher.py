"""Start of the other processes of a run by Lightning, and its handling of signals, under a command of ours."""

import signal
import threading
from collections.abc import Callable

from lightning import Callback, Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from semcorr.core import interrupt
from semcorr.core.ranks import ProcessWatch


class WatchedLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher with watched processes, so that none waits for one that has ended.

    Lightning checks every five seconds and then kills all of them, itself included, without a message.
    """

    def launch(
        self, function: Callable[..., object], *args: object, trainer: Trainer | None = None, **kwargs: object
    ) -> object:
        """Run `function` in all processes; an error caused by the end of another process says so."""
        try:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        except RuntimeError as error:
            guard = interrupt.current_guard()
            if guard and guard.ranks and (explanation := guard.ranks.explain(error)):
                raise explanation from error
            raise

    def _call_children_scripts(self) -> None:
        super()._call_children_scripts()
        if guard := interrupt.current_guard():
            guard.watch(ProcessWatch(self.procs, guard.end))
            self.procs = []  # so that Lightning does not watch them as well


class KeepSignals(Callback):
    """A callback that takes SIGTERM back from Lightning, which exits with code 0 after it, or waits for processes.

    SIGUSR1, by which SLURM announces the end of the time, stays with Lightning, which saves and asks to be run again.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM) if interrupt.current_guard() else None

    def on_sanity_check_start(self, *args: object) -> None:
        """Restore the handler before the sanity check."""
        self._restore_handler()

    def on_train_start(self, *args: object) -> None:
        """Restore the handler as training begins."""
        self._restore_handler()

    def on_test_start(self, *args: object) -> None:
        """Restore the handler as scoring begins."""
        self._restore_handler()

    def _restore_handler(self) -> None:
        """Set the handler of SIGTERM that the command had set."""
        if self.handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)


def watch_processes(trainer: Trainer) -> None:
    """Make a trainer that will start other processes use our launcher; under torchrun it starts none."""
    strategy = trainer.strategy
    launcher = strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        strategy._launcher = WatchedLauncher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
