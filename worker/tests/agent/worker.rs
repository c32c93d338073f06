//! The real worker process, with a trainer whose arithmetic alone is faked.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Instant,
};

use tempfile::TempDir;

use super::coordinator::{Coordinator, DEADLINE};

/// A trainer as a shell script. The file `mode` beside it says how it behaves; `pid` is the last one's process. Its
/// checkpoint is the training images, its predictions are the test images.
const TRAINER: &str = r#"#!/bin/sh
here=$(dirname "$0")
class='{"libtorch_version":"2.11.0","device_model":"fake","instruction_set":"none","threads":1,"flags":"","trainer_version":"0"}'
mode=$(cat "$here/mode")
if [ "$1" = --check ]; then
    case $mode in
    check-loader)
        echo "worker-trainer: error while loading shared libraries: libtorch_cpu.so: cannot open shared object file" >&2
        exit 127 ;;
    check-device)
        echo "error: device \`$3\` cannot be used: libtorch_cuda.so was looked for" >&2
        exit 1 ;;
    esac
    echo "$class"
    exit 0
fi
echo $$ > "$here/pid"
read -r spec
field() { printf '%s' "$spec" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
out=$(field out)
resumed=0
started() { echo "{\"event\":\"started\",\"format\":\"plurality-trainer/3\",\"class\":$class,\"steps_total\":10,\"epochs_total\":2,\"resumed_step\":$resumed}"; }
progress() { echo "{\"event\":\"progress\",\"step\":$1,\"epoch\":1,\"loss\":0.5,\"images_per_second\":100.0,\"validation_accuracy\":0.9}"; }
snapshot() { cat > "$out/snapshot-$1"; echo "{\"event\":\"snapshot\",\"step\":$1,\"file\":\"snapshot-$1\"}"; }
# Hears wishes until the input ends because the worker is gone; beside the rest, and with none of its pipes, so that the worker
# sees at once when the trainer ends.
listen() {
    exec <&3 > /dev/null 2>&1
    while read -r wish; do
        case $wish in *'"wish":"snapshot"'*) : > "$here/wished-$$" ;; esac
    done
    : > "$here/deserted-$$"
}
exec 3<&0
# Until the test makes the file, or the worker or the test is gone. A wish is fulfilled with a snapshot of step 60.
await() {
    if [ -z "$listening" ]; then
        listening=yes
        listen &
    fi
    until [ -e "$here/$1" ]; do
        { [ -d "$here" ] && [ ! -e "$here/deserted-$$" ]; } || exit 1
        if [ -e "$here/wished-$$" ]; then
            rm "$here/wished-$$"
            echo wished | snapshot 60
        fi
        sleep 0.02
    done
}
case $mode in
resume)
    # Goes on at step 7 from the first snapshot that does not say "bad", and hands it over as its checkpoint.
    for file in $(printf '%s' "$spec" | sed -n 's/.*"resume":\[\([^]]*\)\].*/\1/p' | tr -d '"' | tr ',' ' '); do
        if [ "$(cat "$file")" = bad ]; then
            echo "{\"event\":\"snapshot-refused\",\"file\":\"${file##*/}\",\"reason\":\"it says bad\"}"
        else
            resumed=7
            cp "$file" "$here/resumed-from"
            break
        fi
    done ;;
snapshot-crash) started; echo weights | snapshot 4; await crash; kill -KILL $$ ;;
snapshot-outside) started; echo '{"event":"snapshot","step":4,"file":"../stolen"}'; sleep 60 ;;
snapshot-early) echo '{"event":"snapshot","step":4,"file":"snapshot-4"}'; sleep 60 ;;
disk-full) started; echo '{"event":"failed","kind":"disk-full","message":"failed to write a snapshot: No space left on device"}'; exit 0 ;;
loader)
    echo "worker-trainer: error while loading shared libraries: libtorch_cpu.so: cannot open shared object file" >&2
    exit 127 ;;
silent) echo "no idea what to do" >&2; exit 5 ;;
killed) echo "about to load" >&2; kill -KILL $$ ;;
crash) started; progress 3; echo "about to crash" >&2; kill -KILL $$ ;;
garbage) started; echo "epoch 1 done"; sleep 60 ;;
endless) started; head -c 100000 /dev/zero | tr '\0' x; echo; sleep 60 ;;
early) progress 1; sleep 60 ;;
# Takes no step, but hears wishes.
stalled) started; progress 3; await never ;;
# Takes no step and hears nothing.
hung) started; progress 3; exec sleep 60 ;;
numeric) started; echo '{"event":"failed","kind":"numeric","message":"loss is NaN at step 4"}'; exit 0 ;;
empty) started; echo '{"event":"finished","validation_accuracy":0.9,"train_seconds":1.0,"train_cpu_seconds":1.0}'; exit 0 ;;
esac
started
progress 5
case $mode in
wait | resume) await go ;;
snapshots)
    # The first has the bytes of the images, so that a test can make it large; the others name their step.
    cat "$(field train_images)" | snapshot 10
    await more
    for step in 20 30 40; do echo "step $step" | snapshot $step; done
    await go ;;
esac
cat "$(field train_images)" > "$out/checkpoint.safetensors"
cat "$(field test_images)" > "$out/predictions.safetensors"
echo '{"event":"finished","validation_accuracy":0.95,"train_seconds":1.5,"train_cpu_seconds":1.25}'
"#;

/// A worker process and its folders.
pub struct Worker {
    child: Child,
    folder: TempDir,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
}

/// Folders that a worker is started in.
pub struct Place {
    folder: TempDir,
}

impl Place {
    /// Makes folders with a trainer that behaves as `mode` says.
    pub fn new(mode: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let trainer = folder.path().join("trainer");
        fs::write(&trainer, TRAINER).unwrap();
        fs::set_permissions(&trainer, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.path().join("mode"), mode).unwrap();
        Self { folder }
    }

    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Starts a worker of `coordinator` with further arguments.
    pub fn start(self, coordinator: &Coordinator, arguments: &[&str]) -> Worker {
        let trainer = self.folder.path().join("trainer");
        let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
        command.arg("--connect").arg(coordinator.address()).arg("--cache").arg(self.cache());
        command.arg("--device").arg("cpu").args(arguments);
        command.env("PLURALITY_TRAINER", trainer).env("RUST_LOG", "debug,h2=info,hyper_util=info,tower=info");
        // What a coordinator gives to the workers that it starts; the others do not look at it.
        let input =
            File::options().read(true).write(true).create(true).truncate(false).open(self.folder.path().join("input"));
        command.stdin(input.unwrap()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::<(Mutex<Vec<String>>, Condvar)>::default();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let written = Arc::clone(&log);
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                println!("{line}");
                written.0.lock().unwrap().push(line);
                written.1.notify_all();
            }
        });
        Worker { child, folder: self.folder, log }
    }
}

impl Worker {
    /// Starts a worker of `coordinator` whose trainer behaves as `mode` says.
    pub fn start(coordinator: &Coordinator, mode: &str, arguments: &[&str]) -> Self {
        Place::new(mode).start(coordinator, arguments)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Lets trainers that wait go on.
    pub fn let_go(&self) {
        fs::write(self.folder().join("go"), "").unwrap();
    }

    /// Makes a file that the trainer waits for.
    pub fn allow(&self, name: &str) {
        fs::write(self.folder().join(name), "").unwrap();
    }

    /// Returns the names of the files in the folders of attempts.
    pub fn attempt_files(&self) -> Vec<String> {
        let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
        let instances =
            folders(&self.folder().join("cache/instances")).flat_map(|instance| folders(&instance).collect::<Vec<_>>());
        let attempts = instances.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("attempt-"));
        let files = attempts.flat_map(|attempt| folders(&attempt).collect::<Vec<_>>());
        files.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    /// Sends a signal such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until the worker has ended and everything it said has been read.
    pub fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the worker did not end");
            thread::park_timeout(std::time::Duration::from_millis(5));
        }
    }

    /// Waits until the log has a line with `text`.
    pub fn says(&self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        let (lines, changed) = &*self.log;
        let mut guard = lines.lock().unwrap();
        while !guard.iter().any(|line| line.contains(text)) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the worker never said {text:?}");
            guard = changed.wait_timeout(guard, left).unwrap().0;
        }
    }

    /// Returns the worker's process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Says whether the worker has not ended.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Says whether the last trainer still runs.
    pub fn is_training(&self) -> bool {
        let pid = fs::read_to_string(self.folder().join("pid")).unwrap();
        Path::new("/proc").join(pid.trim()).exists()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _already_gone = self.child.kill();
            let _already_reaped = self.child.wait();
        }
    }
}
