//! Asking a trainer, before any work, whether it can run here.

use std::{process::Stdio, time::Duration};

use plurality_common::attempt::DeterminismClass;
use tokio::{io::AsyncReadExt as _, time::timeout};

use super::{EVENT_BYTES_MAX, Exit, Log, Program, TrainerError, When, explain};
use crate::config::ResolvedDevice;

/// How long a trainer may take to load LibTorch and say what it runs on: seconds on a slow disk, more for CUDA.
const CHECK_TIMEOUT: Duration = Duration::from_secs(120);

impl Program {
    /// Asks the trainer what it would run on with `threads` threads on `device`.
    ///
    /// # Errors
    ///
    /// When the program or LibTorch is missing, when the trainer cannot use the device, or does not answer.
    pub async fn check(&self, device: ResolvedDevice, threads: u32) -> Result<DeterminismClass, TrainerError> {
        let mut command = self.command(threads);
        command.arg("--check").arg("--device").arg(device.to_string()).arg("--threads").arg(threads.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| self.start_error(error))?;
        let stdout = child.stdout.take().expect("standard output is piped");
        let mut log = Log::new(child.stderr.take().expect("standard error is piped"));
        let mut answer = String::new();
        let mut stdout = stdout.take(EVENT_BYTES_MAX as u64);
        let talk = async {
            let read_log = async {
                while !log.is_over {
                    log.follow().await;
                }
            };
            let (read, ()) = tokio::join!(stdout.read_to_string(&mut answer), read_log);
            read.and(child.wait().await).map_err(TrainerError::Pipe)
        };
        let Ok(status) = timeout(CHECK_TIMEOUT, talk).await else {
            return Err(TrainerError::Silent { waited: CHECK_TIMEOUT, tail: log.tail });
        };
        let status = status?;
        if !status.success() {
            return Err(explain(When::BeforeFirstEvent, Exit::Status(status), log.tail));
        }
        serde_json::from_str(&answer).map_err(|_| TrainerError::Protocol {
            expected: "a determinism class as a JSON object",
            found: answer.chars().take(200).collect(),
        })
    }
}
