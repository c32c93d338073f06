//! Which GPU a number means, from what NVIDIA's driver says in `/proc`: tch cannot ask CUDA for it.

use std::{env, fs, io, path::Path};

/// Has a folder for each GPU, named by its place on the bus.
const FOLDER: &str = "/proc/driver/nvidia/gpus";
/// Names the driver in its first line.
const VERSION: &str = "/proc/driver/nvidia/version";

/// Returns the model of CUDA's device `number`.
pub fn model(number: usize) -> String {
    // CUDA's own order is the fastest first, and a selection gives the selected new numbers.
    let is_bus_order = env::var("CUDA_DEVICE_ORDER").is_ok_and(|order| order == "PCI_BUS_ID")
        && env::var_os("CUDA_VISIBLE_DEVICES").is_none();
    let models = models(Path::new(FOLDER)).unwrap_or_default();
    name(&models, number, is_bus_order)
}

/// Returns the driver's version.
pub fn driver() -> String {
    version(&fs::read_to_string(VERSION).unwrap_or_default())
}

/// Returns the first word of digits and points in the driver's first line.
fn version(text: &str) -> String {
    let is_number =
        |word: &&str| word.contains('.') && word.chars().all(|letter| letter.is_ascii_digit() || letter == '.');
    let found = text.lines().next().and_then(|line| line.split_whitespace().find(is_number));
    found.unwrap_or("unknown").to_owned()
}

/// Returns the models in the order of the bus.
fn models(folder: &Path) -> io::Result<Vec<String>> {
    let mut gpus = fs::read_dir(folder)?.map(|gpu| Ok(gpu?.path())).collect::<io::Result<Vec<_>>>()?;
    gpus.sort();
    gpus.iter().map(|gpu| Ok(parse(&fs::read_to_string(gpu.join("information"))?))).collect()
}

fn parse(information: &str) -> String {
    let mut fields = information.lines().filter_map(|line| line.split_once(':'));
    let model = fields.find(|(name, _)| name.trim() == "Model").map(|(_, value)| value.trim());
    model.filter(|model| !model.is_empty()).unwrap_or("unknown GPU").to_owned()
}

/// Names the GPU if it is known which it is: all are alike, or they are numbered as on the bus.
fn name(models: &[String], number: usize, is_bus_order: bool) -> String {
    let Some(first) = models.first() else { return "unknown GPU".to_owned() };
    if models.iter().all(|model| model == first) {
        return first.clone();
    }
    let at_its_place = models.get(number).filter(|_| is_bus_order);
    at_its_place.cloned().unwrap_or_else(|| format!("CUDA device {number} of {}", models.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFORMATION: &str = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 18\nGPU UUID: \t GPU-0\n";

    #[test]
    fn models_are_read_in_the_order_of_the_bus() {
        let folder = tempfile::tempdir().unwrap();
        for (place, information) in [("0000:41:00.0", "Model: Second\n"), ("0000:01:00.0", INFORMATION)] {
            fs::create_dir(folder.path().join(place)).unwrap();
            fs::write(folder.path().join(place).join("information"), information).unwrap();
        }
        assert_eq!(models(folder.path()).unwrap(), ["NVIDIA H100 80GB HBM3", "Second"]);
        fs::create_dir(folder.path().join("0000:81:00.0")).unwrap();
        assert!(models(folder.path()).is_err(), "a GPU without information is not passed over");
        assert!(models(&folder.path().join("absent")).is_err());
    }

    #[test]
    fn the_driver_is_named_by_its_version() {
        let check = |text, expected: &str| assert_eq!(version(text), expected);
        check(
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023\nGCC version: 12.2\n",
            "535.104.05",
        );
        check("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580.65.06");
        check("NVRM version:\nGCC version: 12.2\n", "unknown");
        check("", "unknown");
    }

    #[test]
    fn a_gpu_without_a_model_is_unknown() {
        for information in ["", "IRQ: 18\n", "Model:\n", "Model"] {
            assert_eq!(parse(information), "unknown GPU");
        }
    }

    #[test]
    fn a_gpu_is_named_only_if_it_is_known_which_it_is() {
        let check = |models: &[&str], is_bus_order, expected: &str| {
            let models: Vec<String> = models.iter().map(|&model| model.to_owned()).collect();
            assert_eq!(name(&models, 1, is_bus_order), expected);
        };
        check(&[], true, "unknown GPU");
        check(&["A"], false, "A");
        check(&["A", "A"], false, "A");
        check(&["A", "B"], true, "B");
        check(&["A", "B"], false, "CUDA device 1 of A, B");
    }
}
