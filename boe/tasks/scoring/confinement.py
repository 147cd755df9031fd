"""The inside of the sandbox: confines this process, then runs the program given on stdin.

:mod:`boe.tasks.scoring.sandbox` starts this file as a program of its own. It imports only
the standard library, and the package never imports it.
"""

import ctypes
import json
import os
import resource
import sys

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000

FORBIDDEN = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.kill",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.symlink",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.truncate",
    "os.mkdir",
    "pty.",
    "shutil.",
    "signal.pthread_kill",
    "sys.addaudithook",
    "resource.setrlimit",
    "resource.prlimit",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def leave_network() -> bool:
    """Move to a user namespace without network; False where the system does not allow it."""
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
    except (OSError, AttributeError):
        return False
    return unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC) == 0


def limit(seconds: float, memory: int, file_size: int) -> None:
    """Set the limits of the operating system."""
    cpu = int(seconds) + 1
    for kind, value in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def forbid() -> None:
    """Refuse sockets, other processes, and writing outside the working directory."""
    home = os.path.realpath(os.getcwd()) + os.sep
    realpath, fspath, fsdecode = os.path.realpath, os.fspath, os.fsdecode
    forbidden, writing, refusal = FORBIDDEN, WRITING, PermissionError

    def refuse(event: str, arguments: tuple) -> None:
        if event.startswith(forbidden):
            raise refusal(f"the sandbox forbids {event}")
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, _, flags = arguments
            if isinstance(flags, int) and flags & writing:
                target = realpath(fsdecode(fspath(path)))
                if not target.startswith(home):
                    raise refusal(f"the sandbox forbids writing to {target}")

    sys.addaudithook(refuse)


def main() -> None:
    order = json.load(sys.stdin)
    # A pipe: a file would be in the program's reach by name.
    report = os.fdopen(order["report"], "w")
    isolated = leave_network()
    limit(order["seconds"], order["memory"], order["file_size"])
    report.write("namespace\n" if isolated else "hook\n")
    report.flush()
    forbid()
    exec(compile(order["source"], "program", "exec"), {"__name__": "__main__"})
    report.write(order["token"])
    report.close()


if __name__ == "__main__":
    main()
