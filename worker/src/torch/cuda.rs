//! CUDA from the same binary: `worker-trainer` links only what a CPU needs, and starts itself again with LibTorch's CUDA
//! library preloaded when a GPU is asked for.
//!
//! The library registers itself as it is loaded, and nothing calls it by name. Loading it from here would take `unsafe`, which
//! the project does without; the loader does it before the program begins. Only then, too, can the environment say what cuBLAS
//! reads.

use std::{
    env,
    ffi::OsString,
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use tch::{Cuda, Device};

use super::{class::LIBTORCH_VERSION, error::TrainError};

/// The library that has everything of CUDA, under this name in every wheel.
const LIBRARY: &str = "libtorch_cuda.so";
/// Says to a process that it was started again: it must not look for the library once more.
const MARKER: &str = "PLURALITY_CUDA_PRELOADED";
/// Where LibTorch's version is written, from the folder of its libraries.
const VERSION_HEADER: &str = "../include/torch/headeronly/version.h";
/// Without a workspace of fixed size cuBLAS may choose another algorithm from call to call, and so other bits.
const WORKSPACE: (&str, &str) = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8");

/// Understands `cpu`, `cuda` and `cuda:N`.
///
/// # Errors
/// When it is something else.
pub fn parse(name: &str) -> Result<Device, TrainError> {
    match name.split_once(':') {
        None if name == "cpu" => Some(Device::Cpu),
        None if name == "cuda" => Some(Device::Cuda(0)),
        Some(("cuda", number)) => number.parse().ok().map(Device::Cuda),
        _ => None,
    }
    .ok_or_else(|| TrainError::Device { found: name.to_owned() })
}

/// Makes CUDA ready where `device` needs it: returns in a process in which the library is loaded, by becoming that process.
///
/// # Errors
/// When the library is nowhere or of another version, or this program cannot start again.
pub fn load(device: Device) -> Result<(), TrainError> {
    if !matches!(device, Device::Cuda(_)) || is_preloaded() {
        return Ok(());
    }
    let program = env::current_exe().map_err(TrainError::StartAgain)?;
    let folder = find(folders(env::var_os("LIBTORCH"), option_env!("PLURALITY_LIBTORCH_LIB"), &program))?;
    check_version(&folder)?;
    eprintln!("CUDA: starting again with {}", folder.join(LIBRARY).display());
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1)).envs(environment(&folder, |name| env::var_os(name)));
    Err(TrainError::StartAgain(command.exec()))
}

/// Returns the device if this process can use it; never the CPU in place of a GPU.
///
/// # Errors
/// When the library is not loaded, or there is no GPU or none of that number.
pub fn usable(device: Device) -> Result<Device, TrainError> {
    let Device::Cuda(number) = device else { return Ok(device) };
    if !tch::utils::has_cudart() {
        return Err(if is_preloaded() { TrainError::CudaRefused } else { TrainError::CudaNotLoaded });
    }
    match usize::try_from(Cuda::device_count()).unwrap_or(0) {
        0 => Err(TrainError::NoGpu),
        count if number < count => Ok(device),
        count => Err(TrainError::GpuNumber { number, count }),
    }
}

/// Says whether this process was started again.
fn is_preloaded() -> bool {
    env::var_os(MARKER).is_some()
}

/// Returns the folders to look in, in this order: `lib` of LIBTORCH as it is set now, then those where this program looks for
/// the rest of LibTorch.
fn folders(libtorch: Option<OsString>, linked: Option<&str>, program: &Path) -> Vec<PathBuf> {
    let beside = program.parent().unwrap_or(Path::new("/"));
    let named = libtorch.filter(|name| !name.is_empty()).map(|name| Path::new(&name).join("lib"));
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in named.into_iter().chain(linked.map(PathBuf::from)).chain([beside.join("../lib"), beside.to_owned()]) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// Returns the first folder with the library, without links and relative parts: the loader looks from other places.
fn find(folders: Vec<PathBuf>) -> Result<PathBuf, TrainError> {
    let found = folders.iter().find(|folder| folder.join(LIBRARY).is_file());
    match found.map(|folder| folder.canonicalize()) {
        Some(folder) => folder.map_err(TrainError::StartAgain),
        None => Err(TrainError::NoCudaLibrary { folders }),
    }
}

/// Refuses libraries whose header, if there is one, names another version: they would be loaded in place of those that this
/// program was built for.
fn check_version(folder: &Path) -> Result<(), TrainError> {
    let header = match fs::read_to_string(folder.join(VERSION_HEADER)) {
        Ok(header) => header,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(TrainError::StartAgain(error)),
    };
    let found = version(&header);
    if found == LIBTORCH_VERSION {
        return Ok(());
    }
    Err(TrainError::CudaVersion { folder: folder.to_owned(), found })
}

/// Returns the version that a header defines in three numbers.
fn version(header: &str) -> String {
    let number = |part: &str| {
        let name = format!("TORCH_VERSION_{part}");
        header.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["#define", defined, value] if defined == name => Some(value),
            _ => None,
        })
    };
    ["MAJOR", "MINOR", "PATCH"].map(|part| number(part).unwrap_or("?")).join(".")
}

/// Returns what a process with the library of `folder` needs in its environment beside what it has.
///
/// The folder goes in front of the loader's path, so that all of LibTorch is of one copy; found there, the library is
/// preloaded by its name alone, because LD_PRELOAD ends a path at a space. The user's own workspace stays as it is: the
/// determinism class names it.
fn environment(folder: &Path, value: impl Fn(&str) -> Option<OsString>) -> Vec<(&'static str, OsString)> {
    let before = |first: OsString, name| match value(name).filter(|rest| !rest.is_empty()) {
        Some(rest) => [first, rest].join(&OsString::from(":")),
        None => first,
    };
    vec![
        (MARKER, "1".into()),
        ("LD_PRELOAD", before(LIBRARY.into(), "LD_PRELOAD")),
        ("LD_LIBRARY_PATH", before(folder.into(), "LD_LIBRARY_PATH")),
        (WORKSPACE.0, value(WORKSPACE.0).unwrap_or_else(|| WORKSPACE.1.into())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_library(folder: &Path) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(LIBRARY), "not read").unwrap();
        folder.canonicalize().unwrap()
    }

    #[test]
    fn devices_are_cpu_and_cuda_with_a_number_and_nothing_else() {
        assert!(matches!(parse("cpu"), Ok(Device::Cpu)));
        assert!(matches!(parse("cuda"), Ok(Device::Cuda(0))));
        assert!(matches!(parse("cuda:3"), Ok(Device::Cuda(3))));
        for name in ["", "tpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0"] {
            let error = parse(name).unwrap_err();
            assert_eq!(error.to_string(), format!("device is `{name}`, expected `cpu` or `cuda:N`"));
        }
    }

    #[test]
    fn libtorch_as_it_is_set_now_comes_before_the_places_that_were_linked() {
        let program = Path::new("/opt/bin/worker-trainer");
        let check = |libtorch: Option<&str>, linked, expected: &[&str]| {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(folders(libtorch.map(OsString::from), linked, program), expected);
        };
        check(Some("/wheel"), Some("/built/lib"), &["/wheel/lib", "/built/lib", "/opt/bin/../lib", "/opt/bin"]);
        check(Some("/built"), Some("/built/lib"), &["/built/lib", "/opt/bin/../lib", "/opt/bin"]);
        check(Some(""), None, &["/opt/bin/../lib", "/opt/bin"]);
        check(None, None, &["/opt/bin/../lib", "/opt/bin"]);
    }

    #[test]
    fn the_first_folder_that_has_the_library_is_taken() {
        let place = tempfile::tempdir().unwrap();
        let [empty, first, second] = ["empty", "first", "second"].map(|name| place.path().join(name));
        let [first, second] = [first, second].map(|folder| with_library(&folder));
        assert_eq!(find(vec![empty.clone(), first.clone(), second.clone()]).unwrap(), first);
        assert_eq!(find(vec![second.clone(), first]).unwrap(), second);
        assert_eq!(find(vec![second.join("../second")]).unwrap(), second);
    }

    #[test]
    fn a_library_that_is_nowhere_is_an_error_that_says_what_to_do_and_where_was_looked() {
        let error = find(vec!["/no/lib".into(), "/no/where".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "libtorch_cuda.so was not found: install the full PyTorch 2.11.0 wheel, which has CUDA, and set LIBTORCH to its \
             folder, the one that holds lib/; looked in /no/lib, /no/where"
        );
    }

    #[test]
    fn libraries_of_another_version_are_refused_and_those_without_a_header_taken() {
        let place = tempfile::tempdir().unwrap();
        let folder = with_library(&place.path().join("lib"));
        check_version(&folder).unwrap();
        let header = folder.join(VERSION_HEADER);
        fs::create_dir_all(header.parent().unwrap()).unwrap();
        let write = |minor: u32| {
            let text = format!(
                "#pragma once\n#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR {minor}\n#define TORCH_VERSION_PATCH 0\n"
            );
            fs::write(&header, text).unwrap();
        };
        write(11);
        check_version(&folder).unwrap();
        write(12);
        let error = check_version(&folder).unwrap_err();
        let expected =
            format!("libtorch_cuda.so in {} is of LibTorch 2.12.0, this trainer needs 2.11.0", folder.display());
        assert_eq!(error.to_string(), expected);
        assert_eq!(version("#define TORCH_VERSION_MAJOR 3\n"), "3.?.?");
    }

    #[test]
    fn the_environment_puts_one_copy_first_and_keeps_what_the_user_set() {
        let check = |set: &[(&str, &str)], expected: [&str; 4]| {
            let value = |name: &str| set.iter().find(|(set, _)| *set == name).map(|(_, value)| OsString::from(value));
            let names = ["PLURALITY_CUDA_PRELOADED", "LD_PRELOAD", "LD_LIBRARY_PATH", "CUBLAS_WORKSPACE_CONFIG"];
            let expected: Vec<_> = names.into_iter().zip(expected.map(OsString::from)).collect();
            assert_eq!(environment(Path::new("/a wheel/lib"), value), expected);
        };
        check(&[], ["1", "libtorch_cuda.so", "/a wheel/lib", ":4096:8"]);
        check(&[("LD_PRELOAD", ""), ("LD_LIBRARY_PATH", "")], ["1", "libtorch_cuda.so", "/a wheel/lib", ":4096:8"]);
        let own = [("LD_PRELOAD", "a.so"), ("LD_LIBRARY_PATH", "/b:/c"), ("CUBLAS_WORKSPACE_CONFIG", ":16:8")];
        check(&own, ["1", "libtorch_cuda.so:a.so", "/a wheel/lib:/b:/c", ":16:8"]);
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_and_not_the_cpu() {
        assert!(matches!(usable(Device::Cpu), Ok(Device::Cpu)));
        if !tch::utils::has_cudart() {
            let error = usable(Device::Cuda(0)).unwrap_err();
            assert_eq!(
                error.to_string(),
                "libtorch_cuda.so is not loaded: the trainer loads it where it begins, if `--device` asks for it"
            );
        }
    }

    #[test]
    fn what_is_wrong_with_a_gpu_is_said() {
        let driver = "LibTorch has CUDA, but finds no GPU: is NVIDIA's driver installed, new enough, and visible here?";
        assert_eq!(TrainError::NoGpu.to_string(), driver);
        let number = TrainError::GpuNumber { number: 2, count: 2 };
        assert_eq!(number.to_string(), "there is no GPU 2: CUDA finds 2, counted from 0");
    }
}
