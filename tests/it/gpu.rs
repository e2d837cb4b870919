//! The measurement of a GPU in its smallest form, run on the processor, so that it is known to work.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_measurement_of_a_gpu_has_every_part() {
    let folder = tempfile::tempdir().unwrap();
    let python = std::env::var("NEUROSIEVE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let measured = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/gpu/measure.py"))
        .args(["--device", "cpu", "--quick", "--program", env!("CARGO_BIN_EXE_neurosieve"), "--out"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&measured.stderr);
    let result: Value = serde_json::from_slice(&std::fs::read(folder.path().join("gpu.json")).expect(&said)).unwrap();
    let page = std::fs::read_to_string(folder.path().join("gpu.md")).unwrap();
    let parts = result["parts"].as_object().unwrap();

    for name in ["works", "end_to_end", "networks", "rivals", "memory", "where"] {
        assert!(parts[name]["figures"].is_object(), "{name} has no figures: {said}");
    }
    // PyTorch is compared with where this Python has it; elsewhere the part says that it is missing.
    let pytorch = &parts["pytorch"];
    let missing = pytorch["error"].as_str().is_some_and(|reason| reason.contains("has no PyTorch"));
    assert!(pytorch["figures"].is_object() || missing, "{pytorch}");

    let works = &parts["works"]["figures"];
    assert_eq!(works["cpu_and_device"]["mask_dice_worst"], 1.0, "the device is the processor itself");
    for same in ["cpu_and_device", "device_twice"] {
        assert_eq!(works[same]["bit_for_bit"], true, "{same}: {works}");
        assert_eq!(works[same]["scans"], 2);
    }
    assert!(works["one_and_eight_at_once"]["mask_dice_worst"].as_f64().unwrap() > 0.99, "{works}");
    let run = &parts["end_to_end"]["figures"];
    assert_eq!(run["scans"], 4);
    assert!(run["busy"]["device"].as_f64().is_some_and(|share| share > 0.), "{run}");
    // Halving itself is tested where the device worker is (src/score).
    assert_eq!(parts["memory"]["figures"]["scans"], 2);
    let parts_of_time = &parts["where"]["figures"]["f32"]["breakdown"];
    let ms = |key: &str| parts_of_time[key].as_f64().unwrap();
    let sum = ms("networks_ms") + ms("to_device_ms") + ms("from_device_ms") + ms("other_ms");
    assert!((sum - ms("total_ms")).abs() < 1e-6 * ms("total_ms"), "{parts_of_time}");
    for heading in ["It works", "End to end", "Networks", "Rivals", "Out of memory", "Where the device's time goes"] {
        assert!(page.contains(&format!("#### {heading}")), "{page}");
    }
}
