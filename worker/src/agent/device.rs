//! Choosing what to train on.

use std::path::Path;

use plurality_common::attempt::DeterminismClass;

use crate::{
    cli::chain,
    config::{Device, ResolvedDevice},
    trainer::{Program, TrainerError},
};

/// Exists where NVIDIA's driver is loaded, in containers with a GPU too.
const NVIDIA_CONTROL: &str = "/dev/nvidiactl";

/// Returns the device to train on and what the trainer says about it. A device that was asked for by name is never
/// replaced by another.
///
/// # Errors
///
/// When the trainer cannot run here, or not on this device.
pub async fn choose(
    program: &Program,
    asked: Device,
    threads: u32,
) -> Result<(ResolvedDevice, DeterminismClass), TrainerError> {
    let device = match asked {
        Device::Exactly(device) => device,
        Device::Auto => {
            if Path::new(NVIDIA_CONTROL).exists() {
                let gpu = ResolvedDevice::Cuda(0);
                match program.check(gpu, threads).await {
                    Ok(class) => return Ok((gpu, class)),
                    Err(error) => tracing::warn!("there is a GPU, but it cannot be used: {}", chain(&error)),
                }
            }
            ResolvedDevice::Cpu
        }
    };
    Ok((device, program.check(device, threads).await?))
}
