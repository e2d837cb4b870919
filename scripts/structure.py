#!/usr/bin/env python3
"""Checks the structure of the Rust sources: no circles between files or top-level modules, no file over 450 lines.

    python3 scripts/structure.py [--strict] [REPOSITORY]

Takes   the module trees below src/lib.rs and src/main.rs, and the name of the crate in Cargo.toml.
Gives   one line and exit code 0, or a list of what is wrong and exit code 1.

A file imports another one where a path in its code leads there: `use crate::score::Method`, `super::fit::Normal`, or
`cohort::open(…)` after `use crate::cohort`. A path is followed through re-exports to the file that defines the name.
These are no imports: `mod x;`, a re-export that the file does not use itself, links in comments, and what stands under
`#[cfg(test)]`. Nor is what a module takes from the modules inside it: a `mod.rs` may call its parts, and they may use
what it defines for them. With --strict that counts, too.

Macros are not expanded and types are not inferred: a method called on a value whose type the file never names is not
seen.
"""

import argparse
import re
import sys
import tomllib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

MAX_LINES = 450
# Files whose length is checked; circles are looked for in src alone.
MEASURED = ["src", "tests", "examples", "benches"]

# Comments, strings and characters: none of them holds a path that is followed. A quote that starts a lifetime is left.
OPAQUE = re.compile(
    r"""//[^\n]*
      | /\*
      | \b(?:br|cr|r)(?P<hashes>\#*)".*?"(?P=hashes)
      | (?:\b[bc])?"(?:[^"\\]|\\.)*"
      | (?:\bb)?'(?:[^'\\]|\\[^u]|\\u\{[^}]*\})'
    """,
    re.VERBOSE | re.DOTALL,
)
IDENT = r"(?:r\#)?[A-Za-z_]\w*"
TOKEN = re.compile(rf"{IDENT}|::|=>|->|[^\s\w]|\d\w*")
NAME = re.compile(IDENT)
# What defines the next identifier at the level of a module.
DEFINING = {"fn", "struct", "enum", "union", "trait", "type", "const", "static"}


@dataclass
class Module:
    """A module: a file, or a `mod x { … }` inside one."""

    path: tuple[str, ...]
    file: Path
    parent: "Module | None"
    children: dict[str, "Module"] = field(default_factory=dict)
    defined: set[str] = field(default_factory=set)
    # Imported name -> the path that its `use` gives; several where a name stands for a type and a function.
    uses: dict[str, list[list[str]]] = field(default_factory=lambda: defaultdict(list))
    globs: list[list[str]] = field(default_factory=list)
    reexported: set[str] = field(default_factory=set)
    # Everything but `use` statements: the paths and the single names in it.
    paths: list[list[str]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


def without_comments(text):
    """The code with comments, strings and characters blanked, so that lines stay where they are."""
    out, at = [], 0
    while match := OPAQUE.search(text, at):
        end = match.end()
        if match.group() == "/*":
            depth = 1
            while depth:
                mark = re.compile(r"/\*|\*/").search(text, end)
                depth += 1 if mark.group() == "/*" else -1
                end = mark.end()
        out += [text[at : match.start()], re.sub(r"[^\n]", " ", text[match.start() : end])]
        at = end
    return "".join(out) + text[at:]


def closing(tokens, start):
    """The index after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(tokens)):
        if tokens[i] in "([{":
            depth += 1
        elif tokens[i] in ")]}":
            depth -= 1
            if depth == 0:
                return i + 1
    return len(tokens)


def end_of_item(tokens, start):
    """The index after the item that starts at `start`: past its `;` or its body."""
    i = start
    while i < len(tokens) and tokens[i] != ";":
        if tokens[i] == "{":
            return closing(tokens, i)
        i = closing(tokens, i) if tokens[i] in "([" else i + 1
    return i + 1


def without_tests(tokens):
    """The tokens without attributes, and without the items under `#[cfg(test)]`."""
    kept, i = [], 0
    while i < len(tokens):
        if tokens[i] != "#" or tokens[i + 1 : i + 2] != ["["]:
            kept.append(tokens[i])
            i += 1
            continue
        end = closing(tokens, i + 1)
        attribute = tokens[i + 2 : end - 1]
        if attribute[:2] == ["cfg", "("] and "test" in attribute and "not" not in attribute:
            # More attributes may follow before the item itself.
            while tokens[end : end + 2] == ["#", "["]:
                end = closing(tokens, end + 1)
            end = end_of_item(tokens, end)
        i = end
    return kept


def use_tree(tokens, i, prefix):
    """The (path, name) pairs of a `use` from token `i` on; name is None for `*`. Gives the index after it, too."""
    path, found = list(prefix), []
    while i < len(tokens):
        token = tokens[i]
        if token == "{":
            i += 1
            while tokens[i] != "}":
                inner, i = use_tree(tokens, i, path)
                found += inner
                i += tokens[i] == ","
            return found, i + 1
        if token == "*":
            return [(path, None)], i + 1
        if NAME.fullmatch(token) and token != "as":
            path.append(token)
        elif token == "as":
            name = tokens[i + 1]
            i += 1
            if path[-1] == "self":
                path.pop()
            return [(path, name)], i + 1
        elif token in ",;}":
            break
        i += 1
    if path and path[-1] == "self" and len(path) > 1:
        path.pop()
    return ([(path, path[-1])] if path else []), i


class Tree:
    """The modules of one crate."""

    def __init__(self, root, crates):
        # Names under which the code reaches crates of this package, with their roots.
        self.crates = crates
        self.problems = []
        self.modules = []
        self.root = self.load(root, (), None)

    def load(self, file, path, parent):
        module = Module(path, file, parent)
        self.modules.append(module)
        self.read(module, without_tests(TOKEN.findall(without_comments(file.read_text()))), 0)
        return module

    def file_of(self, module, name):
        """The file of `mod name;`, if it is there."""
        inline = module.path[len(self.path_of_file(module)) :]
        owns_its_folder = module.file.name in ("mod.rs", "lib.rs", "main.rs")
        folder = module.file.parent if owns_its_folder else module.file.with_suffix("")
        folder = folder.joinpath(*inline)
        return next((file for file in (folder / f"{name}.rs", folder / name / "mod.rs") if file.is_file()), None)

    @staticmethod
    def path_of_file(module):
        """The path of the outermost module that lies in the same file."""
        while module.parent is not None and module.parent.file == module.file:
            module = module.parent
        return module.path

    def read(self, module, tokens, i):
        """Takes in a module's items, up to the brace that closes it."""
        depth = 0
        while i < len(tokens):
            token, after = tokens[i], tokens[i + 1 : i + 2]
            if token == "}" and depth == 0:
                return i + 1
            depth += (token == "{") - (token == "}")
            if token == "use" and after != ["<"]:
                i = self.read_use(module, tokens, i, depth)
                continue
            if depth == 0 and token == "mod" and after:
                i = self.read_mod(module, tokens, i)
                continue
            if depth == 0 and after and NAME.fullmatch(after[0]):
                if token in DEFINING and after[0] not in {"fn", "unsafe", "extern", "async", "mut"}:
                    module.defined.add(after[0])
            if token == "macro_rules" and after == ["!"]:
                module.defined.add(tokens[i + 2])
            if NAME.fullmatch(token):
                i = self.read_path(module, tokens, i)
                continue
            i += 1
        return i

    def read_use(self, module, tokens, i, depth):
        # `pub use`, or `pub(crate) use`, at the level of the module.
        public = depth == 0 and i > 0 and tokens[i - 1] in ("pub", ")")
        pairs, i = use_tree(tokens, i + 1, [])
        for path, name in pairs:
            if name is None:
                module.globs.append(path)
            elif name == "_":
                module.paths.append(path)
            else:
                module.uses[name].append(path)
                if public:
                    module.reexported.add(name)
        return i

    def read_mod(self, module, tokens, i):
        name, opening = tokens[i + 1], tokens[i + 2]
        if opening == "{":
            child = Module((*module.path, name), module.file, module)
            self.modules.append(child)
            module.children[name] = child
            return self.read(child, tokens, i + 3)
        if (file := self.file_of(module, name)) is not None:
            module.children[name] = self.load(file, (*module.path, name), module)
        else:
            self.problems.append(f"{module.file}: there is no file of `mod {name};`")
        return i + 3

    @staticmethod
    def read_path(module, tokens, i):
        path = [tokens[i]]
        # `::std::fmt` and `<T as Trait>::name` begin nowhere in this crate; `value.name` is a field or a method.
        foreign = i > 0 and tokens[i - 1] in ("::", ".")
        i += 1
        while tokens[i : i + 1] == ["::"] and i + 1 < len(tokens) and NAME.fullmatch(tokens[i + 1]):
            path.append(tokens[i + 1])
            i += 2
        if not foreign:
            module.names.add(path[0])
            if len(path) > 1:
                module.paths.append(path)
        return i

    def resolve(self, module, path, seen=frozenset()):
        """Where a path leads from inside a module: (file, name), a Module, or None for what other crates define."""
        first, rest = path[0], path[1:]
        if first == "crate":
            return self.follow(self.root, rest, seen)
        if first in ("self", "super"):
            start = module if first == "self" else module.parent
            while rest[:1] == ["super"] and start is not None:
                start, rest = start.parent, rest[1:]
            return None if start is None else self.follow(start, rest, seen)
        if self.knows(module, first, seen):
            return self.follow(module, path, seen)
        if first in self.crates:
            other = self.crates[first]
            return other.follow(other.root, rest, seen)
        return None

    def knows(self, module, name, seen):
        if name in module.children or name in module.defined or name in module.uses:
            return True
        return self.through_globs(module, name, seen) is not None

    def through_globs(self, module, name, seen):
        for glob in module.globs:
            key = (id(module), "*", *glob)
            if key in seen:
                continue
            target = self.resolve(module, glob, seen | {key})
            if isinstance(target, Module) and self.knows(target, name, seen | {key}):
                return self.follow(target, [name], seen | {key})
        return None

    def follow(self, module, path, seen):
        """From a module down a path, through re-exports, to the first name that is no module: (its file, the name)."""
        for i, name in enumerate(path):
            if name in module.children:
                module = module.children[name]
                continue
            rest = path[i + 1 :]
            if name in module.defined:
                return module.file, name
            if name in module.uses:
                used = module.uses[name][0]
                key = (id(module), name, *used)
                found = None if key in seen else self.resolve(module, used, seen | {key})
            else:
                # What no glob brings in either was made by a macro.
                found = self.through_globs(module, name, seen) or (module.file, name)
            return self.follow(found, rest, seen) if isinstance(found, Module) else found
        return module

    def imports(self, strict):
        """(file, imported file) -> the names for which."""
        found = defaultdict(set)

        def note(module, path):
            target = self.resolve(module, path)
            # A module as such is no import: what is taken from it is.
            if not isinstance(target, tuple) or target[0] == module.file:
                return
            file, name = target
            if strict or not self.holds(module, file):
                found[module.file, file].add(name)

        for module in self.modules:
            for name, paths in module.uses.items():
                if name not in module.reexported or name in module.names:
                    for path in paths:
                        note(module, path)
            for path in module.paths:
                note(module, path)
            for glob in module.globs:
                target = self.resolve(module, glob)
                if isinstance(target, tuple):
                    note(module, glob)
                    continue
                known = module.children.keys() | module.defined | module.uses.keys()
                for name in module.names - known if target is not None else ():
                    if self.knows(target, name, frozenset()):
                        note(module, [*glob, name])
        return found

    def holds(self, module, file):
        """Whether the file is of a module inside the module's file."""
        path = self.path_of_file(module)
        inner = {other.path[: len(path)] for other in self.modules if other.file == file}
        return inner == {path}


def circles(edges):
    """The groups of nodes that reach each other (Tarjan's algorithm)."""
    order, low, stack, found = {}, {}, [], []

    def visit(node):
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(edges.get(node, ())):
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(edges):
        if node not in order:
            visit(node)
    return found


def crates(root):
    """The module trees of the library and the program."""
    manifest = tomllib.loads((root / "Cargo.toml").read_text())
    name = manifest.get("lib", {}).get("name", manifest["package"]["name"]).replace("-", "_")
    library = Tree(root / "src/lib.rs", {})
    program = root / "src/main.rs"
    return [library, Tree(program, {name: library})] if program.is_file() else [library]


def describe(imports, root):
    """Lines for these imports, with the first names of each."""
    lines = []
    for (file, target), names in sorted(imports.items()):
        names = sorted(names)
        more = f", and {len(names) - 6} more" if len(names) > 6 else ""
        pair = f"{file.relative_to(root)} -> {target.relative_to(root)}"
        lines.append(f"    {pair}: {', '.join(names[:6])}{more}")
    return lines


def circles_of_files(imports, root):
    edges = defaultdict(set)
    for file, target in imports:
        edges[file].add(target)
    problems = []
    for group in circles(edges):
        problems.append(f"{len(group)} files import each other in a circle:")
        inside = {pair: names for pair, names in imports.items() if pair[0] in group and pair[1] in group}
        problems += describe(inside, root)
    return problems


def circles_of_modules(imports, root):
    edges, between = defaultdict(set), defaultdict(dict)
    for pair, names in imports.items():
        upper, lower = (end.relative_to(root / "src").parts[0].removesuffix(".rs") for end in pair)
        if upper != lower:
            edges[upper].add(lower)
            between[upper, lower][pair] = names
    problems = []
    for group in circles(edges):
        problems.append(f"{len(group)} top-level modules import each other in a circle: {', '.join(group)}")
        for upper, lower in sorted(between):
            if upper in group and lower in group:
                problems.append(f"  {upper} -> {lower}, imports: {len(between[upper, lower])}")
                problems += describe(between[upper, lower], root)[:3]
    return problems


def check(root, strict):
    """What is wrong, as lines, and a summary."""
    trees = crates(root)
    imports = {pair: names for tree in trees for pair, names in tree.imports(strict).items()}
    problems = [problem.replace(f"{root}/", "") for tree in trees for problem in tree.problems]
    loaded = {module.file for tree in trees for module in tree.modules}
    orphans = sorted(set((root / "src").rglob("*.rs")) - loaded)
    problems += [f"{file.relative_to(root)} belongs to no module" for file in orphans]
    problems += circles_of_files(imports, root) + circles_of_modules(imports, root)
    files = [file for folder in MEASURED for file in sorted((root / folder).rglob("*.rs"))]
    lengths = {file.relative_to(root): len(file.read_text().splitlines()) for file in files}
    problems += [f"{file} has {n} lines, more than {MAX_LINES}" for file, n in lengths.items() if n > MAX_LINES]
    longest = max(lengths, key=lengths.get)
    return problems, (
        f"structure: {len(loaded)} source files, {len(imports)} imports, no circles; "
        f"the longest file has {lengths[longest]} lines ({longest})"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", nargs="?", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--strict", action="store_true")
    args = parser.parse_args()
    problems, summary = check(args.repository.resolve(), args.strict)
    if problems:
        print("structure:", *problems, sep="\n", file=sys.stderr)
        return 1
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
