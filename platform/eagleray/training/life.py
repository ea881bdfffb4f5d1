"""A rank's share of a run over all its formations: what it holds, joining one, training in it, leaving it.

What is in memory goes on: the model, the optimizer, the position, what compression still owes. A rank that
comes new gets it from those who have it; where nobody has it, all load the newest checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from eagleray import compression, device, groups
from eagleray.data import Shard
from eagleray.data.digests import Entry
from eagleray.errors import PeerLost, TrainingError
from eagleray.packaging import CheckpointStore, Folder
from eagleray.packaging.journal import Journal
from eagleray.specs import TrainSpec
from eagleray.training import loop, sharing, state
from eagleray.training.agreement import Agreement
from eagleray.training.outcome import outcome
from eagleray.training.parts import Materials, Parts, connect, gather, has_local_batch_norm
from eagleray.training.placing import agree_on_place
from eagleray.training.progress import Progress
from eagleray.training.samples import Samples
from eagleray.training.snapshot import Committer
from eagleray.training.station import COMMIT, END, Formation, Station
from eagleray.training.telemetry import Sink

GROUP_TIMEOUT_S = 600.0
"""Backstop only: a rank that died is found by its closed sockets and by the driver."""


class Yielded(Exception):
    """All ranks stopped after the same step, whose state is committed; another formation may go on."""


class Held(NamedTuple):
    """What a rank brings into a formation."""

    has_state: int
    step: int
    settled: int
    committed: int
    is_even: int
    """Nothing was added to what compression owes since all ranks had the mean of it."""


class Life:
    """See the module. For the thread of the train function."""

    def __init__(self, spec: TrainSpec, run_url: str, sink: Sink, station: Station):
        self.spec, self.run_url, self.sink, self.station = spec, run_url, sink, station
        self.store = CheckpointStore(f"{run_url}/checkpoints")
        journal, keep = Journal(run_url), spec.checkpoint.keep
        self.committer = Committer(self.store, journal, 0, sink, keep, is_cut=groups.are_broken)
        self.samples = Samples()
        self.progress = Progress()
        self.settled_step = 0
        """Everything that follows a step (evaluation, commit) was done up to this one."""
        self.committed_step = -1
        self.skipped = 0
        """Steps in a row whose gradient was not finite."""
        self.holds_state = False
        self.formation: Formation | None = None
        self.parts: Parts | None = None
        self._materials: Materials | None = None
        self._earlier: compression.Hook | None = None
        self.is_even = False
        """All ranks owe the same, and no step was begun since."""

    def prepare(self) -> None:
        """Do what needs no other rank, so that nobody waits for it later: the user's code, data, model."""
        from eagleray.training.code import import_code

        self.station.at(0, "read the data and build the model")
        torch.set_num_threads(max(1, int(self.spec.scaling.cpus_per_worker)))
        import_code(Folder(self.run_url))
        self._materials = gather(self.spec, device.pick(self.spec.scaling.gpus_per_worker))

    @property
    def data_digest(self) -> str:
        """Of the data that was read; all ranks must have the same."""
        assert self._materials is not None
        return self._materials.dataset.digest

    def join(self, formation: Formation) -> None:
        """Connect with the other ranks, over the default group, and hold the same state as they do.

        Raises:
            PeerLost: another rank was lost meanwhile.
            CheckpointError, InputError: the newest checkpoint does not fit.
        """
        self.formation = formation
        self.committer.await_copies()  # the state may become another one here
        self.committer.attempt = formation.number
        self.station.at(self.progress.step, "connect with the other ranks", is_waiting=True)
        agreement = Agreement(groups.new_group("votes", backend="gloo", timeout_s=GROUP_TIMEOUT_S))
        materials = self._at_a_place(agreement, formation)
        gradients = groups.new_group("gradients", backend=materials.place.backend, timeout_s=GROUP_TIMEOUT_S)
        held = [Held(*one) for one in agreement.gather(self._held())]
        is_new = not any(one.has_state for one in held)
        is_even = all(one.is_even for one in held if one.has_state)
        with groups.telling_losses():
            parts = connect(materials, gradients=gradients, agreement=agreement, sends_weights=is_new)
        self.parts = parts
        self.station.is_exchanging = lambda: parts.hook.is_exchanging or parts.agreement.is_waiting
        if self._earlier is not None:
            lost = parts.hook.follow(self._earlier, num_lost=formation.num_lost, is_even=is_even)
            self._earlier = None
            if lost.norm > 0 and parts.rank == 0:
                self.sink.put("lost", **dataclasses.asdict(lost))
        parts.agreement.same("the dataset's digest", parts.dataset.digest)
        if is_new:
            self._restore(parts)
        else:
            self._take_the_newest(parts, held, is_even=is_even)
        self.holds_state, self.is_even = True, is_even and not is_new
        self._tell_of_it(parts, formation)

    def train(self) -> dict[str, Any]:
        """Train to the end; returns the outcome (`outcome`).

        Raises:
            Yielded: the driver asked for another formation.
            PeerLost: another rank was lost. What this rank holds is the state after the last step it took.
            EaglerayError: the run cannot go on.
        """
        assert self.parts is not None
        loop.train(self.parts, self)
        self._save_the_end()
        self.station.at(self.progress.step, END)
        return outcome(self.parts, self.progress)

    def took(self, shard: Shard, consumed: Sequence[int]) -> None:
        """A step has been taken, or left out because its gradient was not finite: it counts from here on.

        Args:
            shard: this rank's.
            consumed: the digest of the samples that the ranks' losses took, summed over them.
        """
        assert self.formation is not None
        before = self.progress.consumed
        self.progress = self.progress.advanced(shard.consumed, shard.epoch)
        entry = Entry.of(
            consumed,
            step=self.progress.step,
            consumed_before=before,
            consumed_after=shard.consumed,
            is_skipped=self.skipped > 0,
            world_size=self.formation.world_size,
            generation=self.formation.number,
        )
        self.samples.add(entry)

    def commit(self) -> None:
        """Begin to save the state after the last step; all ranks do it at the same step."""
        assert self.parts is not None
        if self.committed_step == self.progress.step:
            return
        self.station.at(self.progress.step, COMMIT)
        state.commit(self.parts, self.progress, self.committer, self.samples)
        self.committed_step = self.progress.step

    def _save_the_end(self) -> None:
        """Have the state after the last step in the storage; all ranks do it together.

        Rank 0 may have been lost while it wrote that, or could not write it before another was lost: then all
        hold a step as committed that no checkpoint has.

        Raises:
            PeerLost: another rank was lost meanwhile.
            CheckpointError: it cannot be written. TakenOver: a newer attempt of the run commits.
        """
        assert self.parts is not None
        agreement, step = self.parts.agreement, self.progress.step
        while True:
            self.station.at(step, COMMIT)
            state.settle(self.parts, self.committer.flush_final(), self.samples)
            if agreement.sum({"is_stored": self.samples.is_stored(step)})["is_stored"]:
                return
            self.committed_step = -1
            self.commit()

    def yield_to_driver(self) -> None:
        """Stop after this step, as all ranks do: nothing is owed any more that is not in the checkpoint.

        Raises: Yielded
        """
        assert self.parts is not None
        assert self.formation is not None
        self.parts.hook.even_out()
        self.is_even = True
        self.commit()
        saved = self.committer.wait()  # rank 0 may be one of those that leave
        if self.formation.rank == 0 and (saved is None or saved.step != self.progress.step):
            self.sink.put("unsaved", step=self.progress.step)  # if all leave, it is lost
        raise Yielded

    def disconnect(self) -> None:
        """Leave the formation; what is held stays. Never raises."""
        if self.parts is not None:
            self._earlier = self.parts.hook
            self.station.is_exchanging = bool
            self.parts.close()
            self.parts = None

    def close(self) -> None:
        """Wait for what is being written; what is held is of no use any more."""
        self.committer.close()

    def _at_a_place(self, agreement: Agreement, formation: Formation) -> Materials:
        """The materials, where all ranks agree to compute.

        At another place they are made anew, without what was trained: where that is in no checkpoint, a rank
        stays where it is if it can, also with a card that nobody shares with it any more.
        """
        assert self._materials is not None
        is_unsaved = self.holds_state and not self.is_even  # not after a stop that all agreed on
        picked = self._materials.place if is_unsaved else device.pick(self.spec.scaling.gpus_per_worker)
        place = agree_on_place(picked, agreement, formation.rank, formation.world_size)
        if place.device != self._materials.place.device:
            self._materials = gather(self.spec, place)
            self.holds_state = False
        return self._materials

    def _held(self) -> tuple[int, ...]:
        position = (self.progress.step, self.settled_step, self.committed_step)
        return (int(self.holds_state), *position, int(self.is_even))

    def _restore(self, parts: Parts) -> None:
        """Have the state of the newest checkpoint on all ranks.

        Raises:
            PeerLost: they have not read the same one: a rank that went on without us has just finished it, or
                one of them could not read it. The next formation looks again.
            CheckpointError, InputError: it does not fit.
        """
        self.progress = state.restore(parts, self.store, self.samples, self._say)
        self.settled_step = self.committed_step = self.progress.step
        attempt, step = self.samples.parent or (0, 0)
        try:
            parts.agreement.same("the checkpoint to go on from", f"step {step} of attempt {attempt}")
        except TrainingError as error:
            raise PeerLost(str(error)) from error

    def _take_the_newest(self, parts: Parts, held: Sequence[Held], *, is_even: bool) -> None:
        """Have one state on all ranks: of the newest step, whoever has done least of what follows sends his.

        What follows a step is done by all together: if the loss came in the middle of it, some are further.
        """
        chosen = max(
            (one for one in held if one.has_state), key=lambda one: (one.step, -one.settled, -one.committed)
        )
        has_chosen = [one[:4] == chosen[:4] for one in held]
        source = has_chosen.index(True)
        if not all(has_chosen):
            tensors, document = sharing.pack(parts, self) if parts.rank == source else (None, None)
            tensors, document = parts.agreement.broadcast(source, tensors, document)
            if not has_chosen[parts.rank]:
                # Who was a step behind keeps what it owes itself; after a loss nobody has a mean of it.
                is_new = not self.holds_state
                sharing.unpack(parts, self, tensors, document, with_memory=is_new, is_even=is_even)
        if not is_even:  # a step may have broken, in which some ranks had gone further than others
            sharing.even_common_state(parts, source)

    def _tell_of_it(self, parts: Parts, formation: Formation) -> None:
        if parts.rank != 0:
            self.station.tell("training")
            return
        if formation.num_before == 0:
            if parts.place.is_logical_gpu:
                self._say(
                    "no CUDA device for each worker: GPUs are logical ones and the maths runs on the CPU"
                )
            if has_local_batch_norm(parts):
                self._say(
                    "BatchNorm on the CPU: statistics stay per rank between commits, where they are averaged"
                )
        self.sink.put("phase", name="training", step=self.progress.step, attempt=formation.number)
        self.station.tell("training")

    def _say(self, text: str) -> None:
        if self.formation is None or self.formation.rank == 0:
            self.sink.put("note", text=text)
