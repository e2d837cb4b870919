//! The error messages of wrong settings.

use super::support::program::{program, text};

#[test]
fn wrong_settings_are_refused_with_the_next_step_before_anything_is_done() {
    let refused = |arguments: &[&str]| {
        let output = program(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    let run = ["run", "pipelines/demo.toml", "--cohort", "."];
    let typo = refused(&[&run[..], &["--tables", "x", "--set", "score.stepz=3"]].concat());
    assert!(typo.contains("did you mean `steps`"), "{typo}");
    assert!(refused(&run).contains("--tables"));
    assert!(refused(&["run", "pipelines/none.toml"]).contains("pipelines/"));
    assert!(refused(&[&run[..], &["--tables", "x", "--device", "gpu"]].concat()).contains("cuda"));
}
