"""The exception tree: one branch for each way out that the command line offers.

EaglerayError                exit code 1   the run, or the command, failed
├── InputError               exit code 2   what was asked cannot be right
│   ├── SpecError                          a spec file does not validate
│   ├── DataError                          a dataset is missing, empty or of the wrong kind
│   └── ModelNotFound                      no model, version or alias of that name
├── CapacityError            exit code 3   the cluster's node types can never place it
├── ClusterError             exit code 1   a local cluster could not be started, found or stopped
│   ├── ClusterNotRunning
│   └── AuthError                          a token or key is missing or wrong
├── CheckpointError          exit code 1   no checkpoint of a run verifies
│   └── TakenOver                          a newer attempt of the run commits; this one is to end
├── PackageError             exit code 1   a model package is damaged, or may not be loaded
├── EvaluationError          exit code 1   a model's outputs cannot be judged (NaN, another shape)
├── TrainingError            exit code 1   a run stopped by itself (loss not finite, …); no use to retry
├── PeerLost                 exit code 1   another rank stopped answering; the run may be started again
└── ServiceError             exit code 1   another service refused or did not answer (Grafana, Ray's jobs)

A message finishes the sentence: what was asked, what was found, where, what to do next.
"""


class EaglerayError(Exception):
    """Base of every error that a user is meant to read."""

    exit_code = 1


class InputError(EaglerayError):
    """What the user asked for cannot be right."""

    exit_code = 2


class SpecError(InputError):
    """A spec file does not validate; the message has one line per problem."""


class DataError(InputError):
    """A dataset is missing, empty, unreadable or of another kind than its spec says."""


class ModelNotFound(InputError):
    """The registry, or the ingress, has no model, version or alias of that name."""


class CapacityError(EaglerayError):
    """The cluster's node types can never place what was asked."""

    exit_code = 3


class ClusterError(EaglerayError):
    """A cluster could not be started, reached or stopped."""


class ClusterNotRunning(ClusterError):
    """No cluster of that name is running."""


class AuthError(ClusterError):
    """A token or key is missing or wrong."""


class CheckpointError(EaglerayError):
    """No checkpoint of the run verifies, or one could not be written."""


class TakenOver(CheckpointError):
    """A newer attempt of the run has begun to commit; this one may commit no more."""


class PackageError(EaglerayError):
    """A model package is damaged or missing, or names an architecture that may not be loaded."""


class EvaluationError(EaglerayError):
    """A model's outputs cannot be judged: they are not finite, or not of the shape of the targets."""


class TrainingError(EaglerayError):
    """A run stopped by itself: the loss is not finite, or a rank disagreed."""


class PeerLost(EaglerayError):
    """Another rank stopped answering in the middle of an exchange; starting again may help."""


class ServiceError(EaglerayError):
    """Another service refused or did not answer."""
