"""Makes the completions of `fastderp-relay` for bash, zsh and fish from the table of flags.

The scripts have the names and values in them: completing starts no relay.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fastderp.cli.flags import Flag

# The subcommand that takes the relay's flags, and the one that takes words.
WITH_FLAGS, WITH_WORDS = "check", "gen"
# What the metavar of a flag says about its value; other values are not completed.
FILES, DIRECTORIES, COMMANDS = {"FILE", "PATH"}, {"DIR"}, {"COMMAND"}

Words = Mapping[str, Sequence[str]]


class Subcommands(NamedTuple):
    """The variants of each NAME of `gen`, and the flags of each other subcommand."""

    outputs: Words
    flags: Words

    @property
    def others(self) -> str:
        """Those that do not take the relay's flags."""
        return " ".join(sorted((WITH_WORDS, *self.flags)))

    @property
    def all(self) -> str:
        """The names of all."""
        return f"{WITH_FLAGS} {self.others}"

    def after_words(self) -> Iterator[tuple[str, str]]:
        """Yield the words of a line that begins with `gen`, and those that may follow."""
        yield WITH_WORDS, " ".join(self.outputs)
        for name, variants in self.outputs.items():
            if variants:
                yield f"{WITH_WORDS} {name}", " ".join(variants)


def completion(shell: str, flags: Iterable[Flag], outputs: Words, flags_of: Words) -> str:
    """Return the script for `bash`, `zsh` or `fish`.

    outputs has the variants of each NAME of `gen`, flags_of the flags of each other subcommand.
    """
    shown = [flag for flag in flags if flag.group]
    return _SCRIPTS[shell](shown, Subcommands(outputs, flags_of))


def _filled(template: str, **parts: str | Iterable[str]) -> str:
    """Replace each @NAME@ of a script: by words of its line, or by lines."""
    for name, part in parts.items():
        text = part if isinstance(part, str) else "\n".join(part)
        template = template.replace(f"@{name.upper()}@", text)
    return template


def _is_on(flag: Flag) -> bool:
    """Whether only `-NAME=false` changes anything."""
    return flag.is_boolean and flag.default == "true"


def _short(flag: Flag) -> str:
    """Return the first part of a flag's help: shells show one line."""
    return flag.help.partition("; ")[0]


# bash

_BASH = """\
# Completion of fastderp-relay for bash. For all users, as root:
#   fastderp-relay gen completion bash >/etc/bash_completion.d/fastderp-relay
_fastderp_relay() {
    local IFS=$' \\t\\n' word=${COMP_WORDS[COMP_CWORD]} flag= equals= start= words=
    ((COMP_CWORD > 1)) && flag=${COMP_WORDS[COMP_CWORD-1]}
    # Readline breaks words at "=", unless COMP_WORDBREAKS has been changed.
    if [[ $word == -*=* ]]; then
        flag=${word%%=*} start=${word%%=*}= word=${word#*=} equals=1
    elif [[ $word == "=" ]]; then
        word= equals=1
    elif [[ $flag == "=" ]]; then
        flag=${COMP_WORDS[COMP_CWORD-2]} equals=1
    fi
    COMPREPLY=()

    if ((COMP_CWORD > 1)) && [[ " @OTHERS@ " == *" ${COMP_WORDS[1]} "* ]]; then
        case "${COMP_WORDS[*]:1:COMP_CWORD-1}" in
@WORDS@
        esac
        if [[ ${COMP_WORDS[1]} != @WITH_WORDS@ && $word != -* ]]; then
            compopt -o default
        else
            COMPREPLY=($(compgen -W "$words" -- "$word"))
        fi
        return
    fi

    if [[ $flag == -* ]]; then
        flag=${flag#-} flag=${flag#-}
        case $flag in
@VALUES@
        esac
        if [[ $words ]]; then
            COMPREPLY=($(compgen -P "$start" -W "$words" -- "$word"))
            return
        fi
    fi

    if [[ $word == -* ]]; then
        start=
        [[ $word == --* ]] && start=-
        COMPREPLY=($(compgen -P "$start" -W "@FLAGS@" -- "${word#$start}"))
    elif ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "@SUBCOMMANDS@" -- "$word"))
    fi
}
complete -F _fastderp_relay fastderp-relay
"""


def _bash(flags: Sequence[Flag], subcommands: Subcommands) -> str:
    def case(names: Iterable[str], action: str) -> str:
        return f"            {'|'.join(names)}) {action} ;;"

    def names(metavars: set[str]) -> list[str]:
        return [flag.name for flag in flags if flag.metavar in metavars]

    files, directories, commands = names(FILES), names(DIRECTORIES), names(COMMANDS)
    completed = {*files, *directories, *commands}
    booleans = [flag.name for flag in flags if flag.is_boolean]
    others = [
        flag.name
        for flag in flags
        if not (flag.is_boolean or flag.choices or flag.name in completed)
    ]
    values = [
        *(case([flag.name], f'words="{" ".join(flag.choices)}"') for flag in flags if flag.choices),
        case(files, "compopt -o default; return"),
        case(directories, "compopt -o dirnames; return"),
        case(commands, 'COMPREPLY=($(compgen -c -- "$word")); return'),
        case(booleans, '[[ $equals ]] && words="true false"'),
        case(others, "return"),
    ]
    return _filled(
        _BASH,
        others=subcommands.others,
        with_words=WITH_WORDS,
        words=[
            *(case([f'"{line}"'], f'words="{words}"') for line, words in subcommands.after_words()),
            *(
                case([f'"{name}"*'], f'words="{" ".join(names)}"')
                for name, names in subcommands.flags.items()
            ),
        ],
        values=values,
        flags=" ".join(f"-{flag.name}" + ("=false" if _is_on(flag) else "") for flag in flags),
        subcommands=subcommands.all,
    )


# zsh

_ZSH = """\
#compdef fastderp-relay
# Completion of fastderp-relay for zsh. For all users, as root:
#   fastderp-relay gen completion zsh >/usr/local/share/zsh/site-functions/_fastderp-relay
_fastderp-relay() {
    local -a flags=(
@FLAGS@
    )
    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then
        compadd -- @SUBCOMMANDS@
    elif [[ " @OTHERS@ " == *" $words[2] "* ]]; then
        case "${words[2,CURRENT-1]}" in
@WORDS@
        esac
        case $words[2] in
@FLAGS_OF@
        esac
    else
        if [[ $words[2] == @WITH_FLAGS@ ]]; then
            shift words
            (( CURRENT-- ))
        fi
        _arguments $flags
    fi
}
if [[ $funcstack[1] == _fastderp-relay ]]; then
    _fastderp-relay "$@"
else
    compdef _fastderp-relay fastderp-relay
fi
"""


def _zsh(flags: Sequence[Flag], subcommands: Subcommands) -> str:
    return _filled(
        _ZSH,
        flags=(f"        {shlex.quote(_zsh_flag(flag))}" for flag in flags),
        others=subcommands.others,
        words=(
            f'            "{line}") compadd -- {words} ;;'
            for line, words in subcommands.after_words()
        ),
        flags_of=(
            f"            {name}) _alternative 'flags:flag:({' '.join(names)})' 'files:file:_files' ;;"
            for name, names in subcommands.flags.items()
        ),
        with_flags=WITH_FLAGS,
        subcommands=subcommands.all,
    )


def _zsh_flag(flag: Flag) -> str:
    """Return the specification of a flag for _arguments."""
    text = _short(flag).replace("[", r"\[").replace("]", r"\]")
    if flag.is_boolean:
        return f"-{flag.name}=-[{text}]::value:(true false)"
    action = " "
    if flag.choices:
        action = f"({' '.join(flag.choices)})"
    elif flag.metavar in FILES:
        action = "_files"
    elif flag.metavar in DIRECTORIES:
        action = "_files -/"
    elif flag.metavar in COMMANDS:
        action = "_command_names"
    value = flag.metavar.replace(":", r"\:")
    return f"-{flag.name}=[{text}]:{value}:{action}"


# fish

_FISH = """\
# Completion of fastderp-relay for fish. For all users, as root:
#   fastderp-relay gen completion fish >/usr/share/fish/vendor_completions.d/fastderp-relay.fish
# The words before the cursor, without the command, are these.
function __fastderp_relay_after
    set -l words (commandline -opc)
    set -e words[1]
    test "$words" = "$argv"
end
function __fastderp_relay_in
    set -l words (commandline -opc)
    test "$words[2]" = "$argv"
end
function __fastderp_relay_takes_flags
    set -l words (commandline -opc)
    not contains -- "$words[2]" @OTHERS@
end
function __fastderp_relay_at_flag
    __fastderp_relay_takes_flags
    and string match -q -- '-*' (commandline -ct)
end
complete -c fastderp-relay -f
complete -c fastderp-relay -n __fastderp_relay_after -a '@SUBCOMMANDS@'
@WORDS@
@FLAGS_OF@
@FLAGS@
"""


def _fish(flags: Sequence[Flag], subcommands: Subcommands) -> str:
    return _filled(
        _FISH,
        others=subcommands.others,
        words=(
            f"complete -c fastderp-relay -n '__fastderp_relay_after {line}' -a '{words}'"
            for line, words in subcommands.after_words()
        ),
        flags_of=(
            f"complete -c fastderp-relay -n '__fastderp_relay_in {name}' -F -a '{' '.join(names)}'"
            for name, names in subcommands.flags.items()
        ),
        flags=(
            f"complete -c fastderp-relay {_fish_flag(flag)} -d {_fish_quoted(_fish_text(flag))}"
            for flag in flags
        ),
        subcommands=subcommands.all,
    )


def _fish_flag(flag: Flag) -> str:
    """Return the options of `complete` for a flag and its value."""
    if _is_on(flag):
        return f"-n __fastderp_relay_at_flag -a '-{flag.name}=false'"
    name = f"-n __fastderp_relay_takes_flags -o {flag.name}"
    if flag.is_boolean:
        return f"{name} -f"
    if flag.choices:
        return f"{name} -x -a '{' '.join(flag.choices)}'"
    if flag.metavar in FILES:
        return f"{name} -r -F"
    if flag.metavar in DIRECTORIES:
        return f"{name} -x -a '(__fish_complete_directories)'"
    if flag.metavar in COMMANDS:
        return f"{name} -x -a '(__fish_complete_command)'"
    return f"{name} -x"


def _fish_text(flag: Flag) -> str:
    return f"turn off: {_short(flag)}" if _is_on(flag) else _short(flag)


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS: dict[str, Callable[[Sequence[Flag], Subcommands], str]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
