//! The determinism class, from what this process really runs on.
//!
//! tch cannot ask LibTorch which instruction set it chose; its rule (`at::get_cpu_capability`) is repeated here from the
//! same two sources, the processor's flags and `ATEN_CPU_CAPABILITY`.

use std::{env, fs};

use plurality_common::attempt::DeterminismClass;
use plurality_worker::fused;
use tch::Device;

use super::gpu;

/// The version that tch 0.24 demands when it is built.
pub const LIBTORCH_VERSION: &str = "2.11.0";
/// Raised with every change of this trainer that changes a checkpoint's bytes.
const TRAINER_REVISION: u32 = 2;
/// Environment variables that change which arithmetic LibTorch, MKL and oneDNN choose, in the order of the class.
const VARIABLES: [&str; 6] = [
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
];

/// The same of cuBLAS and CUDA, for trainings on a GPU.
const CUDA_VARIABLES: [&str; 2] = ["CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE"];

/// Returns the class of this process on `device` with `threads`.
pub fn determinism_class(device: Device, threads: u32) -> DeterminismClass {
    let processor = Processor::parse(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let capability = env::var("ATEN_CPU_CAPABILITY").ok();
    let (device_model, instruction_set, of_device) = match device {
        Device::Cuda(number) => {
            let versions = [tch::utils::version_cudart(), tch::utils::version_cudnn()];
            let model = format!("{} beside {}", gpu::model(number), processor.model);
            (model, cuda(versions, &gpu::driver()), &CUDA_VARIABLES[..])
        }
        _ => {
            let name = instruction_set(&processor.flags, capability.as_deref());
            // The hand-written engine asks the processor itself.
            (processor.model, format!("{name}, fused {}", fused::instruction_set()), &[][..])
        }
    };
    let variables = VARIABLES.iter().chain(of_device);
    let flags: Vec<String> = variables.filter_map(|name| Some(format!("{name}={}", env::var(name).ok()?))).collect();
    DeterminismClass {
        libtorch_version: LIBTORCH_VERSION.to_owned(),
        device_model,
        instruction_set,
        threads,
        flags: if flags.is_empty() { "none".to_owned() } else { flags.join(" ") },
        trainer_version: format!("{} revision {TRAINER_REVISION}", env!("CARGO_PKG_VERSION")),
    }
}

/// What `/proc/cpuinfo` says of the first processor.
struct Processor {
    /// Vendor's name for it with family, model and stepping, by which libraries choose their kernels.
    model: String,
    flags: Vec<String>,
}

impl Processor {
    fn parse(cpuinfo: &str) -> Self {
        let field = |names: &[&str]| {
            cpuinfo.lines().take_while(|line| !line.is_empty()).find_map(|line| {
                let (name, value) = line.split_once(':')?;
                names.contains(&name.trim()).then(|| value.trim().to_owned())
            })
        };
        let unknown = || "?".to_owned();
        let numbers = ["cpu family", "model", "stepping"].map(|name| field(&[name]).unwrap_or_else(unknown));
        let name = field(&["model name", "CPU part"]).unwrap_or_else(|| "unknown processor".to_owned());
        let flags = field(&["flags", "Features"]).unwrap_or_default();
        Self {
            model: format!("{name} ({})", numbers.join("-")),
            flags: flags.split_whitespace().map(str::to_owned).collect(),
        }
    }
}

/// Names what computes on a GPU: the versions of CUDA's runtime and of cuDNN as these libraries count them, and the driver,
/// which compiles for models that came after the libraries.
fn cuda([runtime, cudnn]: [i64; 2], driver: &str) -> String {
    format!("CUDA {}.{}, cuDNN {cudnn}, driver {driver}", runtime / 1000, runtime % 1000 / 10)
}

/// Repeats `at::get_cpu_capability`: the variable decides if it names a known set, else the processor does.
fn instruction_set(flags: &[String], capability: Option<&str>) -> &'static str {
    let has = |name: &str| flags.iter().any(|flag| flag == name);
    match capability {
        Some("avx512") => return "AVX512",
        Some("avx2") => return "AVX2",
        Some("default") => return "DEFAULT",
        Some("sve" | "sve256") => return "SVE256",
        Some(_) | None => {}
    }
    if ["avx512vl", "avx512bw", "avx512dq", "fma"].into_iter().all(has) {
        "AVX512"
    } else if has("avx2") && has("fma") {
        "AVX2"
    } else if has("sve") {
        "SVE256"
    } else {
        "DEFAULT"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: A Chip\nstepping\t: 8\n\
                           flags\t\t: fma avx2 avx512vl avx512bw avx512dq\n\nprocessor\t: 1\nmodel name\t: Another\n";

    #[test]
    fn the_first_processor_is_named_with_its_numbers() {
        assert_eq!(Processor::parse(CPUINFO).model, "A Chip (6-143-8)");
        assert_eq!(Processor::parse("").model, "unknown processor (?-?-?)");
    }

    #[test]
    fn a_gpu_is_named_with_the_libraries_that_choose_its_arithmetic() {
        assert_eq!(cuda([13_000, 91_501], "580.65.06"), "CUDA 13.0, cuDNN 91501, driver 580.65.06");
        assert_eq!(cuda([12_080, 91_501], "570.1"), "CUDA 12.8, cuDNN 91501, driver 570.1");
    }

    #[test]
    fn the_instruction_set_follows_the_processor_unless_the_environment_names_one() {
        let check = |flags: &str, capability, expected| {
            let flags: Vec<String> = flags.split(' ').map(str::to_owned).collect();
            assert_eq!(instruction_set(&flags, capability), expected);
        };
        check("fma avx2 avx512vl avx512bw avx512dq", None, "AVX512");
        check("fma avx2 avx512vl avx512bw", None, "AVX2");
        check("avx2", None, "DEFAULT");
        check("fma avx2 avx512vl avx512bw avx512dq", Some("avx2"), "AVX2");
        check("fma avx2", Some("nonsense"), "AVX2");
    }
}
