"""Why a build ends without an image.

KnarrError
├── RetryableError
│   └── RegistryUnavailable     a package registry did not answer: worth another attempt
└── FinalError
    ├── BuildFailed             a build tool said no; its last lines are in `log_tail`
    │   ├── FileTooLarge        a larger file than a build may write
    │   ├── OutOfMemory         more memory than one build may take
    │   ├── TooManyProcesses    more processes than one build may have
    │   └── TooMuchCpu          more processor time than one process may use
    └── CannotBuild             the app asks for something that this builder or machine does not have
"""

from seedwork.errors import FinalError, Unavailable


class RegistryUnavailable(Unavailable):
    """A package registry did not answer."""

    code = "registry_unavailable"


class BuildFailed(FinalError):
    """A build tool ended with an error."""

    code = "build_failed"
    title = "The build failed"


class OutOfMemory(BuildFailed):
    """The build took more memory than it may."""

    code = "out_of_memory"


class TooManyProcesses(BuildFailed):
    """The build had more processes than it may."""

    code = "too_many_processes"


class FileTooLarge(BuildFailed):
    """The build wrote a file above the limit."""

    code = "file_too_large"


class TooMuchCpu(BuildFailed):
    """A process of the build used more processor time than it may."""

    code = "too_much_cpu"


class CannotBuild(FinalError):
    """The app asks for something that is not here: an interpreter, a tool, a kind of build."""

    code = "cannot_build"
    title = "Cannot be built here"
