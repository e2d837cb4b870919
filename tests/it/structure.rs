//! `scripts/structure.py`, which `make check` runs on the sources: what it finds in a small test crate.

use std::path::Path;
use std::process::{Command, Output};

use super::support::program::{printed, text};
use super::support::root;

/// Runs the check on a crate of these files.
fn check(files: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let manifest = ("Cargo.toml", "[package]\nname = \"made-up\"\n");
    for (name, content) in files.iter().chain([&manifest]) {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap_or(Path::new(""))).unwrap();
        std::fs::write(file, content).unwrap();
    }
    Command::new("python3").arg(root().join("scripts/structure.py")).arg(folder.path()).output().unwrap()
}

#[test]
fn a_circle_is_found_through_re_exports_modules_and_globs() {
    let output = check(&[
        ("src/lib.rs", "pub mod a;\npub mod b;\npub mod c;\npub use c::{Deep, Thing};\n"),
        ("src/main.rs", "fn main() {\n    made_up::a::helper();\n}\n"),
        ("src/a/mod.rs", "mod inner;\npub use inner::Inner;\npub fn helper() {\n    inner::work()\n}\n"),
        ("src/a/inner.rs", "pub struct Inner;\npub fn work() {\n    let _: Option<crate::Thing> = None;\n}\n"),
        ("src/b.rs", "use crate::a;\npub struct Text;\npub fn f() -> a::Inner {\n    a::Inner\n}\n"),
        ("src/c.rs", "use crate::b::*;\npub struct Thing(Text);\npub enum Deep {}\n"),
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    let found = text(&output.stderr);
    for words in [
        "3 files import each other in a circle",
        "src/a/inner.rs -> src/c.rs: Thing",
        "src/b.rs -> src/a/inner.rs: Inner",
        "src/c.rs -> src/b.rs: Text",
        "3 top-level modules import each other in a circle: a, b, c",
    ] {
        assert!(found.contains(words), "no `{words}` in\n{found}");
    }
}

#[test]
fn comments_strings_tests_parents_and_mere_re_exports_are_no_imports() {
    let output = check(&[
        ("src/lib.rs", "//! Of [`crate::a`].\npub mod a;\npub mod b;\npub mod c;\n"),
        (
            "src/a.rs",
            "/// As [`crate::b::B`], and \"/* no comment\".\npub struct A<'a>(&'a str);\n\
             const TEXT: &str = r#\"use crate::b::B;\"#; // use crate::b::B;\n/* crate::b::B /* */ crate::b::B */\n\
             const QUOTE: char = '\"';\n#[cfg(test)]\nmod tests {\n    use crate::b::B;\n}\n",
        ),
        ("src/b.rs", "pub use crate::c::C;\npub struct B(crate::a::A<'static>);\n"),
        ("src/c/mod.rs", "mod part;\nuse part::Part;\npub struct C(Part, crate::b::B);\npub fn shared() {}\n"),
        ("src/c/part.rs", "use super::shared;\npub struct Part;\n"),
    ]);
    assert!(output.status.success(), "{}", printed(&output));
    assert!(text(&output.stdout).contains("5 source files, 3 imports, no circles"), "{}", printed(&output));
}

#[test]
fn a_long_file_and_a_file_of_no_module_are_found() {
    let long = "// A line.\n".repeat(451);
    let output = check(&[("src/lib.rs", &long), ("src/forgotten.rs", "")]);
    assert_eq!(output.status.code(), Some(1));
    let found = text(&output.stderr);
    assert!(found.contains("src/lib.rs has 451 lines, more than 450"), "{found}");
    assert!(found.contains("src/forgotten.rs belongs to no module"), "{found}");
}
