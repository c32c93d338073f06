//! What a fresh clone brings and fetches: the dataset's files and LibTorch.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use plurality_common::{digest::Digest, idx};
use plurality_tests::workspace::root;
use tempfile::TempDir;

/// Writes a wheel that pip takes and that is not the pinned one.
const WRITE_FALSE_WHEEL: &str = r#"
import sys, zipfile
with zipfile.ZipFile(sys.argv[1] + "/torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl", "w") as wheel:
    folder = "torch-2.11.0.dist-info/"
    wheel.writestr(folder + "METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0\n")
    wheel.writestr(folder + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: cp312-cp312-manylinux_2_28_x86_64\n")
    wheel.writestr(folder + "RECORD", "")
"#;

/// Runs the script as on a machine whose processor is the second argument.
const RUN_ON: &str = r#"
import platform, runpy, sys
script, machine, *arguments = sys.argv[1:]
platform.machine = lambda: machine
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"#;

fn python(code: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.current_dir(root()).env_remove("LIBTORCH").args(["-c", code]).args(arguments);
    command
}

/// Checks that `command` fails, saying all of `words`.
fn check_refused(command: &mut Command, words: &[&str]) {
    let Output { status, stderr, .. } = command.output().expect("the script can be started");
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(!status.success(), "{command:?} must fail");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in: {stderr}");
    }
}

#[test]
fn a_download_with_another_digest_is_tried_again_and_never_used() {
    let folder = TempDir::new().unwrap();
    let wheels = folder.path().join("wheels");
    fs::create_dir(&wheels).unwrap();
    assert!(python(WRITE_FALSE_WHEEL, &[&wheels.to_string_lossy()]).status().unwrap().success());
    let destination = folder.path().join("libtorch");
    let script = "scripts/fetch-libtorch";
    let mut fetch = Command::new(script);
    fetch.current_dir(root()).args([&*destination.to_string_lossy(), "--machine", "x86_64"]);
    fetch.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", &wheels);
    check_refused(&mut fetch, &["attempt 1 of 3", "attempt 3 of 3", "has SHA-256", "set LIBTORCH"]);
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["wheels"], "nothing may be left of a fetch that failed");
}

#[test]
fn a_machine_without_a_pinned_libtorch_is_told_to_bring_its_own() {
    let folder = TempDir::new().unwrap();
    let destination = folder.path().join("libtorch");
    let arguments = ["scripts/fetch-libtorch", "riscv64", &*destination.to_string_lossy()];
    check_refused(&mut python(RUN_ON, &arguments), &["Linux on riscv64", "aarch64 and x86_64", "set LIBTORCH"]);
}

#[test]
fn an_own_libtorch_is_honoured_if_its_version_fits() {
    let folder = TempDir::new().unwrap();
    let fetch = |libtorch: &Path| {
        let mut command = Command::new("scripts/fetch-libtorch");
        command.current_dir(root()).env("LIBTORCH", libtorch);
        command
    };
    check_refused(&mut fetch(folder.path()), &["does not exist", &folder.path().to_string_lossy()]);

    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("include/torch/csrc/api/include/torch/torch.h", "");
    write("lib/libtorch_cpu.so", "");
    let version = |minor| {
        format!("#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR {minor}\n#define TORCH_VERSION_PATCH 0\n")
    };
    write("include/torch/headeronly/version.h", &version(6));
    check_refused(&mut fetch(folder.path()), &["version 2.6.0", "exactly 2.11.0"]);
    write("include/torch/headeronly/version.h", &version(11));
    assert!(fetch(folder.path()).output().unwrap().status.success());
}

#[test]
fn the_dataset_is_the_one_its_page_describes() {
    let folder = root().join("data/mnist");
    let page = fs::read_to_string(folder.join("README.md")).unwrap();
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "gz"));
    assert_eq!(files.len(), 4);
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let packed = fs::read(&path).unwrap();
        let unpacked = idx::unpack(&name, &packed).unwrap();
        for (name, bytes) in [(name.as_str(), &packed), (name.trim_end_matches(".gz"), &unpacked)] {
            let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` "))).unwrap();
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            assert_eq!(cells[2].replace(',', ""), bytes.len().to_string(), "{row}");
            assert_eq!(cells[3].trim_matches('`'), Digest::of(bytes).to_string(), "{row}");
        }
    }
}
