"""`featcache completion SHELL`: a script that completes commands, flags and choices, made from the parser."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field

from featcache_cli.options import Commands, add_command

WHERE = {
    "bash": 'eval "$(featcache completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(featcache completion zsh)"   in ~/.zshrc',
    "fish": "featcache completion fish > ~/.config/fish/completions/featcache.fish",
    "powershell": "featcache completion powershell | Out-String | Invoke-Expression   in $PROFILE",
}


@dataclass
class Words:
    """What can follow each command, `""` for none, `cache ls` for a command of a command.

    Attributes:
        commands: by command, the names of commands with their descriptions.
        flags: by command.
        choices: by command, then by flag.
    """

    commands: dict[str, dict[str, str]] = field(default_factory=dict)
    flags: dict[str, list[str]] = field(default_factory=dict)
    choices: dict[str, dict[str, list[str]]] = field(default_factory=dict)


def add(commands: Commands) -> None:
    example = "\n".join(f"featcache completion {shell}" for shell in WHERE)
    about = "a script by which a shell completes commands"
    parser = add_command(commands, "completion", about, example, run)
    places = "; ".join(f"{shell}: {where}" for shell, where in WHERE.items())
    parser.add_argument("shell", choices=tuple(WHERE), metavar="SHELL", help=places.replace("%", "%%"))


def run(args: argparse.Namespace) -> int:
    words = words_of(args.root)
    made = {"bash": bash, "zsh": zsh, "fish": fish, "powershell": powershell}[args.shell](words)
    sys.stdout.write(made)
    return 0


def words_of(parser: argparse.ArgumentParser, name: str = "", found: Words | None = None) -> Words:
    """The words of a parser and of its commands."""
    found = found or Words()
    found.flags[name] = [flag for action in parser._actions for flag in action.option_strings]
    found.choices[name] = {
        flag: [str(choice) for choice in action.choices]
        for action in parser._actions
        for flag in action.option_strings
        if action.choices
    }
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            about = {key: (sub.description or "").partition("\n")[0] for key, sub in action.choices.items()}
            found.commands[name] = about
            for key, sub in action.choices.items():
                words_of(sub, f"{name} {key}".strip(), found)
    return found


def bash(words: Words) -> str:
    """For bash 3.2 or later; a word that is no command, flag or choice is a file."""
    nested = [name for name in words.commands if name]
    chosen = [
        f'    "{name} {flag}") words="{" ".join(values)}" ;;'
        for name, flags in words.choices.items()
        for flag, values in flags.items()
    ]
    flags = [f'      "{name}") words="{" ".join(found)}" ;;' for name, found in words.flags.items()]
    commands = [f'      "{name}") words="{" ".join(found)}" ;;' for name, found in words.commands.items()]
    lines = [
        "_featcache() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"',
        '  local name="" words="" depth=1',
        '  if [ "$COMP_CWORD" -gt 1 ]; then name="${COMP_WORDS[1]}"; depth=2; fi',
        f'  case "$name" in {"|".join(nested) or "-"}) if [ "$COMP_CWORD" -gt 2 ]; then'
        ' name="$name ${COMP_WORDS[2]}"; depth=3; fi ;; esac',
        '  case "$name $before" in',
        *chosen,
        "  esac",
        '  if [ -z "$words" ]; then case "$current" in',
        '    -*) case "$name" in',
        *flags,
        "    esac ;;",
        '    *) if [ "$COMP_CWORD" -eq "$depth" ]; then case "$name" in',
        *commands,
        "    esac; fi ;;",
        "  esac; fi",
        '  if [ -n "$words" ]; then COMPREPLY=($(compgen -W "$words" -- "$current"))',
        '  else COMPREPLY=($(compgen -f -- "$current")); fi',
        "}",
        "complete -o filenames -F _featcache featcache",
    ]
    return "\n".join(lines) + "\n"


def zsh(words: Words) -> str:
    """By the completion of bash, which zsh reads."""
    load = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
    return load + bash(words)


def fish(words: Words) -> str:
    """One line for each command and flag."""
    lines = []
    for name, commands in words.commands.items():
        here = f"__fish_seen_subcommand_from {name}" if name else "__fish_use_subcommand"
        for command, about in commands.items():
            lines.append(f"complete -c featcache -f -n {_quoted(here)} -a {command} -d {_quoted(about)}")
    for name, flags in words.flags.items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {part}" for part in name.split())
        for flag in flags:
            values = words.choices[name].get(flag, [])
            kind = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            more = f" -x -a {_quoted(' '.join(values))}" if values else ""
            lines.append(f"complete -c featcache -n {_quoted(seen or '__fish_use_subcommand')} {kind}{more}")
    return "\n".join(lines) + "\n"


def powershell(words: Words) -> str:
    """For PowerShell 5 or later."""

    def table(entries: dict[str, list[str]]) -> str:
        return "@{" + "; ".join(f"'{key}' = '{' '.join(found)}'" for key, found in entries.items()) + "}"

    choices = {
        f"{name} {flag}": values for name, flags in words.choices.items() for flag, values in flags.items()
    }
    return (
        "\n".join(
            [
                "Register-ArgumentCompleter -Native -CommandName featcache -ScriptBlock {",
                "  param($word, $ast, $position)",
                f"  $flags = {table(words.flags)}",
                f"  $commands = {table({name: list(found) for name, found in words.commands.items()})}",
                f"  $choices = {table(choices)}",
                '  $typed = @($ast.CommandElements | Select-Object -Skip 1 | ForEach-Object { "$_" })',
                "  if ($word) { $typed = @($typed | Select-Object -SkipLast 1) }",
                "  $name = ''",
                "  if ($typed.Count -gt 0) { $name = $typed[0] }",
                "  if ($typed.Count -gt 1 -and $commands.ContainsKey($name)) {",
                '    $name = "$name $($typed[1])" }',
                "  $before = if ($typed.Count -gt 0) { $typed[-1] } else { '' }",
                '  if ($choices.ContainsKey("$name $before")) { $found = $choices["$name $before"] }',
                "  elseif ($word -like '-*') { $found = $flags[$name] }",
                "  else { $found = $commands[$name] }",
                '  "$found" -split \' \' | Where-Object { $_ -and $_ -like "$word*" } | ForEach-Object {',
                "    [System.Management.Automation.CompletionResult]::new($_) }",
                "}",
            ]
        )
        + "\n"
    )


def _quoted(text: str) -> str:
    """For fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
