//! Generates the messages and services from `ensemble/v1` without `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 4] = ["types", "blob_service", "worker_service", "run_service"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=ensemble");
    let paths = FILES.map(|file| format!("ensemble/v1/{file}.proto"));
    let descriptors = protox::compile(paths, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
