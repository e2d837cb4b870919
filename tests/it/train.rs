//! `neurosieve train`, and the use of a bundle: the real program on synthetic heads with the smallest networks.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::support::program::command_in;

/// The networks learn nothing in this time, but every step of the training runs.
const PIPELINE: &str = r#"
[train]
name = "tiny"
seed = 5
bf16 = false
device = "cpu"
checkpoint_seconds = 0

[train.tokenizer]
network = { levels = [4, 3, 3], channels = [8, 16], blocks = 1 }
steps = 12
batch = 2
learning_rate = 1e-3

[train.detector]
network = { width = 16, heads = 2, layers = 1 }
steps = 25
batch = 2
learning_rate = 1e-3

[train.inpainter]
network = { width = 16, heads = 2, layers = 1 }
steps = 12
batch = 2
learning_rate = 1e-3

[train.prior]
network = { width = 16, heads = 2, layers = 1 }
steps = 12
batch = 2
learning_rate = 1e-3
"#;

fn command(arguments: &[&str], folder: &Path) -> Command {
    let mut command = command_in(folder, arguments);
    // Sums of several threads depend on their number.
    command.env("OMP_NUM_THREADS", "1");
    command
}

fn program(arguments: &[&str], folder: &Path) -> Output {
    command(arguments, folder).output().unwrap()
}

/// A folder with two healthy subjects to fit on, one held out and one with lesions, and a training pipeline.
fn cohort() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let made = program(&["synth", "cohort", "--subjects", "4", "--lesions", "1", "--corrupt", "0"], folder.path());
    assert!(made.status.success(), "{made:?}");
    let table: String = ["lesioned", "train", "train", "val"]
        .iter()
        .enumerate()
        .map(|(i, split)| format!("sub-synth{:03}\t{split}\n", i + 1))
        .collect();
    std::fs::write(folder.path().join("cohort/participants.tsv"), format!("participant_id\tsplit\n{table}")).unwrap();
    std::fs::write(folder.path().join("train.toml"), PIPELINE).unwrap();
    folder
}

fn training<'a>(work: &'a str, out: &'a str) -> Vec<&'a str> {
    vec!["train", "train.toml", "--cohort", "cohort", "--set", work, "--set", out]
}

/// Steps of a stage in the curve of a bundle.
fn steps(bundle: &Path, stage: &str) -> Vec<i64> {
    let file = std::fs::File::open(bundle.join("training.parquet")).unwrap();
    let rows = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    rows.flat_map(|batch| {
        let batch = batch.unwrap();
        let (stages, steps) = (batch.column(0).as_string::<i32>().clone(), batch.column(1).clone());
        let steps = steps.as_primitive::<Int64Type>().clone();
        (0..batch.num_rows()).filter(|&i| stages.value(i) == stage).map(|i| steps.value(i)).collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn a_training_that_is_killed_and_continued_gives_the_same_bundle() {
    let folder = cohort();
    let (path, file) = (folder.path(), |name: &str| folder.path().join(name));
    let whole = program(&training("train.work=w1", "train.out=b1"), path);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));

    // Killed while the detector is trained. Preprocessed scans are not preprocessed again.
    std::fs::create_dir(file("w2")).unwrap();
    std::fs::rename(file("w1/prepared"), file("w2/prepared")).unwrap();
    let mut killed = command(&training("train.work=w2", "train.out=b2"), path).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !file("w2/detector.checkpoint.safetensors").exists() {
        assert!(started.elapsed() < Duration::from_secs(120), "no checkpoint of the detector");
        assert_eq!(killed.try_wait().unwrap(), None, "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!file("b2").exists(), "it was killed in time");
    let rest = program(&training("train.work=w2", "train.out=b2"), path);
    let said = String::from_utf8_lossy(&rest.stderr).into_owned();
    assert!(rest.status.success() && said.contains("detector: continues after step"), "{said}");

    for name in ["tokenizer", "detector", "inpainter", "prior"] {
        let weights = |bundle: &str| std::fs::read(file(&format!("{bundle}/{name}.safetensors"))).unwrap();
        assert!(weights("b1") == weights("b2"), "the weights of the {name} differ");
    }
    assert_eq!(steps(&file("b1"), "detector"), [0, 10, 20]);
    assert_eq!(
        std::fs::read(file("b1/training.parquet")).unwrap(),
        std::fs::read(file("b2/training.parquet")).unwrap()
    );

    a_bundle_adapts_to_another_cohort(path);
    methods_are_compared(path);
    twins_have_something_to_compare(path);
}

/// The networks are kept, and the healthy map is fitted again.
fn a_bundle_adapts_to_another_cohort(folder: &Path) {
    std::fs::write(folder.join("adapt.toml"), "[train]\nname = \"here\"\ndevice = \"cpu\"\nnetworks_of = \"b1\"\n")
        .unwrap();
    // The scans for fitting and for the thresholds are swapped.
    let turned = |split: &str| if split == "val" { "train" } else { "val" };
    let table = std::fs::read_to_string(folder.join("cohort/participants.tsv")).unwrap();
    let swapped: Vec<String> = table
        .lines()
        .map(|line| match line.split_once('\t') {
            Some((id, split @ ("train" | "val"))) => format!("{id}\t{}", turned(split)),
            _ => line.to_owned(),
        })
        .collect();
    std::fs::write(folder.join("cohort/participants.tsv"), swapped.join("\n") + "\n").unwrap();
    let mut arguments = training("train.work=w1", "train.out=b3");
    arguments[1] = "adapt.toml";
    let run = program(&arguments, folder);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    std::fs::write(folder.join("cohort/participants.tsv"), table).unwrap();

    let file = |bundle: &str, name: &str| std::fs::read(folder.join(bundle).join(name)).unwrap();
    for network in ["tokenizer", "detector", "inpainter", "prior"].map(|name| format!("{name}.safetensors")) {
        assert!(file("b1", &network) == file("b3", &network), "{network} differs");
    }
    assert_ne!(file("b1", "healthy.safetensors"), file("b3", "healthy.safetensors"));
    let read = |bundle: &str| -> toml::Table {
        toml::from_str(&String::from_utf8(file(bundle, "bundle.toml")).unwrap()).unwrap()
    };
    let (one, other) = (read("b1"), read("b3"));
    assert_eq!((other["name"].as_str(), other["training"]["val_scans"].as_integer()), (Some("here"), Some(2)));
    assert_ne!(one["calibration"]["mask_threshold"], other["calibration"]["mask_threshold"]);
    assert!(String::from_utf8(file("b3", "MODEL_CARD.md")).unwrap().contains("The networks are those of tiny@"));

    // The detector is trained further, from the kept state of its training. The other networks do not change.
    let mut further = training("train.work=w1", "train.out=b4");
    further[1] = "adapt.toml";
    let stage = "train.detector={network={width=16, heads=2, layers=1}, steps=11, batch=2, learning_rate=1e-3}";
    further.extend(["--set", r#"train.further=["detector"]"#, "--set", stage]);
    further.extend(["--set", "train.healthy_map_scans=0"]);
    let run = program(&further, folder);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    for network in ["tokenizer", "inpainter", "prior"].map(|name| format!("{name}.safetensors")) {
        assert!(file("b1", &network) == file("b4", &network), "{network} differs");
    }
    assert_ne!(file("b1", "detector.safetensors"), file("b4", "detector.safetensors"));
    assert_eq!(steps(&folder.join("b4"), "detector"), [0, 10]);
    assert!(
        String::from_utf8(file("b4", "MODEL_CARD.md"))
            .unwrap()
            .contains("The detector was trained further, with 11 updates")
    );
    // Without a healthy map it is whole, too.
    assert!(!folder.join("b4/healthy.safetensors").exists());
    let opened = program(&["twin", "--bundle", "b4", "--out", "b4.safetensors"], folder);
    assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
    for (only, expected) in [
        (r#"train.further=["tokenizer"]"#, "depend on the tokenizer's codes"),
        (r#"train.further=["prior"]"#, "[train.prior]"),
    ] {
        further[9] = only;
        let run = program(&further, folder);
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(!run.status.success() && said.contains(expected), "{said}");
    }
}

/// All methods, on the lesioned subject against the held-out healthy one.
fn methods_are_compared(folder: &Path) {
    let pipeline = r#"
[cohort.select]
participants = { split = ["lesioned"] }
[healthy.select]
participants = { split = ["val"] }
[model]
bundle = "b1"
[[eval.methods]]
name = "mim"
score = { steps = 2 }
[[eval.methods]]
name = "ar"
score = { method = "ar", ar_limit_nats = 3.6, restorations = 2 }
[[eval.methods]]
name = "threshold"
score = { method = "threshold" }
"#;
    std::fs::write(folder.join("eval.toml"), pipeline).unwrap();
    let arguments =
        ["eval", "eval.toml", "--cohort", "cohort", "--healthy", "cohort", "--json", "e.json", "--tables", "tables"];
    let run = program(&arguments, folder);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let report: Value = serde_json::from_slice(&std::fs::read(folder.join("e.json")).unwrap()).unwrap();
    let methods = report["methods"].as_array().unwrap();
    assert_eq!(methods.iter().map(|m| m["name"].as_str().unwrap()).collect::<Vec<_>>(), ["mim", "ar", "threshold"]);
    for method in methods {
        let precision = method["average_precision"]["value"].as_f64().unwrap();
        let prevalence = method["prevalence"].as_f64().unwrap();
        assert!(precision > 0.2 * prevalence && precision <= 1.0, "{method}");
        assert!(method["scans"][0]["truth_ml"].as_f64().unwrap() > 0.5, "{method}");
    }
    let table = String::from_utf8(run.stdout).unwrap();
    assert!(table.contains("| threshold |") && table.contains("not a medical device"), "{table}");
    let query = "SELECT method, average_precision_low <= average_precision AS low FROM evaluations ORDER BY method";
    let rows = program(&["sql", "--tables", "tables", "-c", query, "--format", "csv"], folder);
    let rows = String::from_utf8(rows.stdout).unwrap();
    assert_eq!(rows.trim(), "method,low\nar,true\nmim,true\nthreshold,true");
}

fn twins_have_something_to_compare(folder: &Path) {
    let run = program(&["twin", "--bundle", "b1", "--out", "twin.safetensors"], folder);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let bytes = std::fs::read(folder.join("twin.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for name in ["image", "tokenizer.out", "detector.grad.head.weight", "inpainter.out", "prior.grad.trunk.row.weight"]
    {
        assert!(file.tensor(name).unwrap().data().iter().any(|&b| b != 0), "{name} is all zeros");
    }
}
