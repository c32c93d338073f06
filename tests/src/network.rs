//! A network of two ends with a bad line between them: a coordinator on the near side, a worker on the far side.
//!
//! Each end is a network namespace with one TUN device; this process carries the packets from one device to the other, or
//! does not. Nothing of this machine's own network is touched: the devices are made inside the namespaces, and a test runs in
//! the near one. Everything goes with the process that made it but the namespaces' names; those of processes that were killed
//! are removed by the next test.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::fd::AsFd as _,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::{Handle, Runtime};
use tokio_tun::Tun;

use crate::{
    cluster::is_running,
    line::{Line, Quality},
};

/// Where `ip netns` keeps namespaces by name.
const NAMESPACES: &str = "/run/netns";
/// How the name of each namespace made here begins; the id of the process that made it follows.
const NAME_PREFIX: &str = "plurality-test-";
/// The only device of each end.
const DEVICE: &str = "line";
/// Decides which packets are lost.
const SEED: u64 = 1;

/// The near end's address, of a block that is set apart for examples.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The far end's address.
pub const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Both directions of the line, and the far end.
pub struct Network {
    /// From the far end to the near one.
    pub to_near: Line,
    /// From the near end to the far one.
    pub to_far: Line,
    far: Namespace,
}

impl Network {
    /// Runs `test` on the near end of a line that is good at first. Where this process may make no network, it says so on
    /// standard error, and the test does not run.
    pub fn test(test: impl AsyncFnOnce(&Self) + Send) {
        let ends = sweep().and_then(|()| Ok((Namespace::make("near")?, Namespace::make("far")?)));
        let (near, far) = match ends {
            Ok(ends) => ends,
            Err(obstacle) => return skip(&obstacle),
        };
        near.run(move || {
            let runtime = Runtime::new().expect("a runtime can be made");
            runtime.block_on(async move {
                match Self::connect(far) {
                    Ok(network) => test(&network).await,
                    Err(obstacle) => skip(&obstacle),
                }
            });
        });
    }

    /// Connects the namespace of this thread with `far`.
    fn connect(far: Namespace) -> Result<Self, String> {
        let runtime = Handle::current();
        let near_device = Arc::new(device(NEAR, FAR)?);
        let far_device = far.run(|| {
            let _watched_by = runtime.enter();
            device(FAR, NEAR)
        });
        let far_device = Arc::new(far_device?);
        let to_near = Line::open(Arc::clone(&far_device), Arc::clone(&near_device), SEED);
        let to_far = Line::open(near_device, far_device, SEED + 1);
        Ok(Self { to_near, to_far, far })
    }

    /// Makes both directions better or worse.
    pub fn set(&self, quality: Quality) {
        self.to_near.set(quality);
        self.to_far.set(quality);
    }

    /// Runs `work` on a thread of the far end: processes that it starts are there.
    pub fn far_away<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.far.run(work)
    }
}

/// Returns how many connections between the two ends are open, as the end of process `id` sees it.
pub fn connections(id: u32) -> usize {
    // Columns: number, local address, remote address, state (01 is ESTABLISHED). Addresses are numbers of this machine's order.
    let table = fs::read_to_string(format!("/proc/{id}/net/tcp")).expect("the process exists");
    let far = format!("{:08X}:", u32::from_ne_bytes(FAR.octets()));
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[3] == "01" && row[1..3].iter().any(|address| address.starts_with(&far))).count()
}

fn skip(obstacle: &str) {
    eprintln!("skipped: no network can be made: {obstacle}");
}

/// Makes the device of one end in the namespace of this thread.
fn device(own: Ipv4Addr, other: Ipv4Addr) -> Result<Tun, String> {
    let built = Tun::builder().name(DEVICE).address(own).destination(other).up().build();
    let devices = built.map_err(|error| format!("no TUN device: {error}"))?;
    Ok(devices.into_iter().next().expect("a device has at least one queue"))
}

/// A network namespace; its name is removed when this is dropped.
struct Namespace {
    name: String,
}

impl Namespace {
    fn make(side: &str) -> Result<Self, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("{NAME_PREFIX}{}-{}-{side}", process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        ip(&["-netns", &namespace.name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Runs `work` on a thread that is inside, as are the threads and processes that it starts.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let namespace = File::open(self.path()).expect("the namespace was made");
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("whoever made a namespace may enter it");
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.name]) {
            eprintln!("a namespace is left behind: {error}");
        }
    }
}

/// Removes the namespaces of tests that were killed.
fn sweep() -> Result<(), String> {
    let names = ip(&["netns", "list"])?;
    // A name may be followed by a number in brackets.
    let names = names.lines().filter_map(|line| line.split(' ').next());
    let abandoned = names.filter(|name| owner(name).is_some_and(|id| !is_running(id)));
    // Another test may have been faster.
    abandoned.for_each(|name| drop(ip(&["netns", "delete", name])));
    Ok(())
}

/// Returns the process that made the namespace of that name, if it was made here.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(NAME_PREFIX)?.split('-').next()?.parse().ok()
}

/// Runs `ip` and returns what it printed.
fn ip(arguments: &[&str]) -> Result<String, String> {
    let shown = format!("ip {}", arguments.join(" "));
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("{shown}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{shown}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
