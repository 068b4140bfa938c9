"""Command lines: a config file with its changes, other flags, and exit statuses.

JAX is imported inside functions, because that takes a second: mistakes in a command line are
reported, and Ctrl-C is obeyed, before.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.runtime import signals
from rag_jax.runtime.errors import Preempted, RagJaxError
from rag_jax.runtime.paths import expand_path
from rag_jax.runtime.terminal import discard_output, open_closed, write_error, write_text

_NAME = r"[^.\[\]]+(?:\[-?[0-9]+\])*"
_FIELD = re.compile(rf"{_NAME}(?:\.{_NAME})*")
_NO_BACKEND = "Unable to initialize backend"  # how JAX begins to say that a platform is missing


def read_command(
    arguments: list[str], options: Mapping[str, str], *, switches: Mapping[str, str] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Reads `--config=FILE[:preset]`, `--config.field=value` and other flags.

    Args:
        options: what each flag with a value is for, by its name.
        switches: what each flag without a value is for.

    Returns:
        The config with its changes, and the other flags' values by name: None for an omitted flag,
        False for an omitted switch.

    Raises:
        RagJaxError: a missing config file, an unknown flag or field, or a value of another type.
    """
    from absl import flags
    from ml_collections import config_flags

    def parse(arguments: list[str]):
        values = flags.FlagValues()
        argv = ["", *arguments]
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        for name, purpose in options.items():
            flags.DEFINE_string(name, None, purpose, flag_values=values)
        for name, purpose in (switches or {}).items():
            flags.DEFINE_boolean(name, False, purpose, flag_values=values)
        rest = values(argv)[1:]
        if rest:
            raise flags.Error(f"{rest[0]}: not a flag; all are written --name=value")
        return values

    file, named = find_config_file(arguments), _list_named(arguments)
    # As of any flag the last one holds, and it alone: its preset is no other file's.
    arguments = [a for a in arguments if not re.match(r"--?config=", a)]
    preset = named[-1].partition(":")[1:]
    arguments = [f"--config={file}{''.join(preset)}", *arguments]
    for argument in arguments:
        if re.match(rf"--?no(config\..*|{'|'.join(switches or ('(?!)',))})=", argument):
            raise RagJaxError(f"{argument}: takes no value; leave it out, or leave out the 'no'")
    try:
        overrides = [a for a in arguments if re.match(r"--?(no)?config\.", a)]
        others = [a for a in arguments if a not in overrides]
        values = parse(others)
        # A number's parser refuses "None". As with any flag, of two for one field the last holds.
        empty = {o for o in overrides if _empties(o, *_find_group(values["config"].value, o))}
        values = parse([*others, *(o for o in overrides if o not in empty)])
        last = {_split_field(override)[0]: override for override in overrides}
        for override in empty & {*last.values()}:
            group, name = _find_group(values["config"].value, override)
            group[name] = None
    except flags.Error as error:
        # An error inside the config file comes as the text of its traceback.
        lines = str(error).strip().splitlines()
        where = f"config file {file}: " if "Traceback" in str(error) else ""
        raise RagJaxError(where + lines[-1]) from error
    return values["config"].value, {n: values[n].value for n in (*options, *(switches or ()))}


def find_config_file(arguments: list[str]) -> Path:
    """The file that `--config` names, without a `:preset` at its end.

    A name such as `srrag` is the file `configs/srrag.py` of the present folder or, failing that,
    the one that comes with the package.

    Raises:
        RagJaxError: the flag or the file is missing.
    """
    named = _list_named(arguments)
    known = sorted(map(str, Path("configs").glob("*.py")))
    known = ", ".join(known or [path.stem for path in list_config_files()])
    if not named or not named[-1]:
        raise RagJaxError(f"--config=FILE is missing; there are {known}")
    name = named[-1].split(":", 1)[0]
    file = expand_path(name)
    if not file.is_file() and re.fullmatch(r"\w+", name):
        files = {path.stem: path for path in (*list_config_files(), *Path("configs").glob("*.py"))}
        file = files.get(name, file)
    if not file.is_file():
        raise RagJaxError(f"config file {file}: not found; there are {known}")
    return file


def find_preset(arguments: list[str]) -> str:
    """The preset that `--config` names after the file; empty without one."""
    return _list_named(arguments)[-1].partition(":")[2]


def _list_named(arguments: list[str]) -> list[str]:
    return [a.split("=", 1)[1] for a in arguments if re.match(r"--?config=", a)]


def list_config_files() -> list[Path]:
    """The config files that come with the package, or with the checkout that it is used from."""
    package = Path(__file__).parents[1]
    folders = package / "configs", package.parent / "configs"
    return next(filter(None, (sorted(folder.glob("[!_]*.py")) for folder in folders)), [])


def _join_config(arguments: list[str]) -> list[str]:
    """The arguments with `--config FILE` as one of them, `--config=FILE`."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--config", "-config") and not argument.startswith("-"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _split_field(override: str) -> tuple[str, str | None]:
    """The field of `--config.field=value` and its value; None without one."""
    field, has_value, value = override.partition("=")
    return re.sub(r"^--?(no)?config\.", "", field), value if has_value else None


def _empties(override: str, group: Any, name: Any) -> bool:
    """Whether an override sets a number to None; `build` says whether the field can be."""
    if _split_field(override)[1] != "None" or not hasattr(group, "keys"):
        return False
    return group[name] is None or type(group[name]) in (int, float)


def _find_group(config: Any, override: str) -> tuple[Any, Any]:
    """Where the field of `--config.a.b[0].c=value` is: the group `a.b[0]` and the name `c`.

    Raises:
        RagJaxError: there can be no such field or there is none, it is a group itself, or the value
            is missing.
    """
    from rag_jax.config import describe_unknown

    path, given = _split_field(override)
    if given is None:
        raise RagJaxError(f"config.{path}: has no value; write --config.{path}=VALUE")
    if not _FIELD.fullmatch(path):
        raise RagJaxError(f"config.{path}: is no field; write fields as in a.b or a[0].b")
    group, place, value, so_far = None, None, config, "config"
    for name, index in re.findall(r"([^.\[\]]+)|\[(-?\d+)\]", path):
        group = value
        if index:
            if not isinstance(value, tuple | list) or not 0 <= int(index) < len(value):
                raise RagJaxError(f"{so_far}[{index}]: no such entry")
            place, so_far = int(index), f"{so_far}[{index}]"
        else:
            fields = list(value.keys()) if hasattr(value, "keys") else []
            if name not in fields:
                raise RagJaxError(describe_unknown(name, fields, path=so_far))
            place, so_far = name, f"{so_far}.{name}"
        value = group[place]
    if hasattr(value, "keys"):
        fields = ", ".join(value.keys())
        raise RagJaxError(f"{so_far}: a group of fields ({fields}); name one of them")
    return group, place


def find_system(config: Any, systems: Sequence[str]) -> str:
    """The config's system; raises a RagJaxError if the system is not one of `systems`."""
    system = config.get("system")
    if system not in systems:
        raise RagJaxError(f"config.system={system!r}: must be one of {', '.join(systems)}")
    return system


def read_count(options: Mapping[str, str | None], name: str) -> int | None:
    """A flag's value as a whole number; raises a RagJaxError if the value is none."""
    value = options[name]
    if value is not None and not value.isdecimal():
        raise RagJaxError(f"--{name}={value}: must be a whole number")
    return None if value is None else int(value)


def read_path(options: Mapping[str, str | None], name: str) -> Path | None:
    """A flag's value as a path, None without the flag; `~` is expanded.

    Raises:
        RagJaxError: the value is blank, or there is no such home folder.
    """
    value = options[name]
    if value is None:
        return None
    if not value.strip():  # of a shell's variable that is not set
        raise RagJaxError(f"--{name}={value}: is blank; name a path, or leave the flag out")
    return expand_path(value)


def find_workdir(arguments: list[str], options: Mapping[str, str | None]) -> Path:
    """The work folder: the value of --workdir, or runs/<config>."""
    return read_path(options, "workdir") or Path("runs") / find_config_file(arguments).stem


def keep_programs() -> None:
    """Has JAX keep compiled programs in the user's cache; see `programs.keep_programs`."""
    from rag_jax.models.io.hub import cache_folder
    from rag_jax.runtime import programs

    programs.keep_programs(cache_folder() / "programs")


def run(
    main: Callable[[list[str]], None],
    usage: str,
    *,
    interrupted: str = "",
    resumes: bool = True,
    describe: Callable[[Any], str] | None = None,
) -> int:
    """Runs a command and returns its exit status; a fault that the user can repair takes one line.

    Args:
        usage: the text for --help.
        interrupted: the line after Ctrl-C and SIGTERM, where it is not the usual one.
        resumes: whether the same command continues, or ends well where it was stopped.
        describe: the settings of a config as text, for --help with --config.
    """
    open_closed()
    arguments = _join_config(sys.argv[1:])
    interrupted = interrupted or f"interrupted{'; the same command continues' * resumes}"
    signals.start(interrupted, resumes=resumes)
    try:
        if {"--help", "-h"} & {*arguments}:
            write_text(usage)
            flags = [argument for argument in arguments if re.match(r"--?config[=.]", argument)]
            if describe and flags:
                write_text(describe(read_command(flags, {})[0]))
            return 0
        main(arguments)
        write_text("", end="")
    except (KeyboardInterrupt, Preempted) as stop:
        return signals.end(type(stop), str(stop) or interrupted)
    except Exception as error:
        if reason := signals.noted():  # which some code between made into another exception
            return signals.end(reason, interrupted)
        return _report(error)
    return 0


def _report(error: Exception) -> int:
    """Prints what ended a command; returns the exit status. A bug keeps its traceback."""
    if isinstance(error, RagJaxError):
        write_error(error)
        return 1
    if isinstance(error, BrokenPipeError):  # whoever read the output has gone
        discard_output()
        return 141  # as a shell reports SIGPIPE
    if isinstance(error, RuntimeError) and str(error).startswith(_NO_BACKEND):
        set_to = os.environ.get("JAX_PLATFORMS", "")
        write_error(f"JAX_PLATFORMS={set_to}: {error}" if set_to else error)
        return 1
    raise error
