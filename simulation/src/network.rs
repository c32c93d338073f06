//! A network in memory: connections that carry bytes in order, late, or not at all.
//!
//! It does what TCP does: bytes arrive in order or the connection breaks. What is sent while a link is down arrives once it
//! is up again. A machine that is switched off, or loses its power, leaves its peers with a reset, or with silence. What can
//! go wrong between calls, and not between bytes, is the business of [`crate::service`].

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures::Stream;
use plurality_worker::agent::server::{self, Dial, Dialling};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};
use tonic::transport::server::Connected;

use crate::{chance::Chance, clock::Clock};

/// The shortest time that anything takes from one machine to another. Machines run in turns of this length: what one sends
/// in its turn cannot matter to another in the same one.
pub const LATENCY_MIN: Duration = Duration::from_millis(50);
/// Stream of [`Chance`] for whatever belongs to no connection.
const NETWORK_STREAM: u64 = 2;
/// The first of the streams for connections, two each.
const FIRST_CONNECTION_STREAM: u64 = 1000;
/// Between two looks whether a link that is down is up again, for who wants to connect.
const REDIAL: Duration = Duration::from_secs(1);

/// A machine's address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Address(pub usize);

/// One direction between two machines.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Least time that anything takes, at least [`LATENCY_MIN`].
    pub latency: Duration,
    /// How much longer it may take.
    pub jitter: Duration,
    /// Whether nothing arrives.
    pub is_down: bool,
    /// How likely each piece that is sent breaks its connection and is lost.
    pub cut: f64,
}

impl Default for Link {
    fn default() -> Self {
        Self { latency: LATENCY_MIN, jitter: LATENCY_MIN, is_down: false, cut: 0.0 }
    }
}

impl Link {
    /// Draws how long something takes.
    fn takes(&self, chance: &Chance) -> Duration {
        self.latency.max(LATENCY_MIN) + chance.up_to(self.jitter)
    }
}

/// All links and connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Network {
    clock: Clock,
    // A lock and no message: a write is not a task. There is one thread.
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    /// For whatever belongs to no connection.
    chance: Chance,
    hosts: BTreeMap<Address, Host>,
    links: BTreeMap<(Address, Address), Link>,
    connections: BTreeMap<u64, [End; 2]>,
    next_connection: u64,
}

#[derive(Debug, Default)]
struct Host {
    /// Times that it was switched on.
    life: u64,
    is_up: bool,
    /// Before this, nothing arrives.
    hushed_until: Duration,
    /// Connections that wait to be accepted, and when they arrive; present while somebody listens.
    backlog: Option<VecDeque<(Duration, u64)>>,
    listener: Option<Waker>,
}

/// One end of a connection.
#[derive(Debug)]
struct End {
    host: Address,
    life: u64,
    /// Whether its owner has dropped it.
    is_dropped: bool,
    /// For what it sends. Its own: a server that stops tells its connections in an order that nobody determines.
    chance: Chance,
    /// What was drawn for what it sent last, and when that was. What is sent in one moment travels as one, because in how many
    /// pieces a server says good-bye is not determined either.
    last_sent: Option<(Duration, Fate)>,
    incoming: VecDeque<Piece>,
    reader: Option<Waker>,
}

/// What happens to something on its way.
#[derive(Clone, Copy, Debug)]
struct Fate {
    takes: Duration,
    /// Whether it breaks its connection.
    is_cut: bool,
}

#[derive(Debug)]
struct Piece {
    /// When it arrives; not before the link is up again if absent.
    due: Option<Duration>,
    what: What,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum What {
    Bytes(Bytes),
    /// The other side sends no more.
    End,
    /// The connection is broken.
    Reset,
}

impl Network {
    /// Makes a network without faults.
    pub fn new(clock: Clock, seed: u64) -> Self {
        let shared = Shared {
            seed,
            chance: Chance::new(seed, NETWORK_STREAM),
            hosts: BTreeMap::new(),
            links: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
        };
        Self { clock, shared: Arc::new(Mutex::new(shared)) }
    }

    /// Switches a machine on.
    pub fn boot(&self, host: Address) {
        let mut shared = self.lock();
        let host = shared.hosts.entry(host).or_default();
        host.life += 1;
        host.is_up = true;
    }

    /// Switches a machine off. Its peers see their connections break if it says good-bye, as a system does for a process
    /// that died; else they see nothing, as when a machine loses its power.
    pub fn switch_off(&self, host: Address, says_goodbye: bool) {
        let now = self.clock.now();
        let mut shared = self.lock();
        let Some(known) = shared.hosts.get_mut(&host) else { return };
        known.is_up = false;
        known.backlog = None;
        known.listener = None;
        let connections: Vec<u64> = shared.connections.keys().copied().collect();
        for id in connections {
            for side in [0, 1] {
                if shared.connections.get(&id).is_some_and(|ends| ends[side].host == host && !ends[side].is_dropped) {
                    shared.end_of(id, side).is_dropped = true;
                    if says_goodbye {
                        shared.send(id, side, What::Reset, now);
                    }
                }
            }
        }
    }

    /// Lets nothing arrive at a machine until `moment`. Whether a server that is told to stop still takes what arrives in that
    /// very moment is left to chance by the library that it is made with, and that chance is not the seed's.
    pub fn hush(&self, host: Address, moment: Duration) {
        self.lock().hosts.entry(host).or_default().hushed_until = moment;
    }

    /// Changes a link in one direction.
    pub fn change(&self, from: Address, to: Address, change: impl FnOnce(&mut Link)) {
        let now = self.clock.now();
        let mut shared = self.lock();
        let link = shared.links.entry((from, to)).or_default();
        change(link);
        if !link.is_down {
            shared.release(from, to, now);
        }
    }

    /// Begins to listen on `host`.
    pub fn listen(&self, host: Address) -> Listener {
        let mut shared = self.lock();
        shared.hosts.entry(host).or_default().backlog = Some(VecDeque::new());
        Listener { network: self.clone(), host, timer: None }
    }

    /// Returns what connects `from` with `to`.
    pub fn dialler(&self, from: Address, to: Address) -> Arc<dyn Dial> {
        Arc::new(Dialler { network: self.clone(), from, to })
    }

    async fn connect(self, from: Address, to: Address) -> io::Result<Connection> {
        while self.lock().is_cut_off(from, to) {
            sleep(REDIAL).await;
        }
        let (there, round_trip, connected) = {
            let now = self.clock.now();
            let mut shared = self.lock();
            let chance = shared.chance.clone();
            let there = shared.link(from, to).takes(&chance);
            let round_trip = there + shared.link(to, from).takes(&chance);
            (there, round_trip, shared.open(from, to, now + there))
        };
        tracing::trace!("dialling takes {there:?} there and {round_trip:?} in all");
        sleep(round_trip).await;
        let id = connected.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(Connection::new(self, id, 0))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn link(&self, from: Address, to: Address) -> Link {
        self.links.get(&(from, to)).copied().unwrap_or_default()
    }

    fn is_cut_off(&self, one: Address, other: Address) -> bool {
        self.link(one, other).is_down || self.link(other, one).is_down
    }

    /// Opens a connection that arrives at `arrives`; none if nobody listens.
    fn open(&mut self, from: Address, to: Address, arrives: Duration) -> Option<u64> {
        let lives = [from, to].map(|host| self.hosts.get(&host).map_or(0, |host| host.life));
        let id = self.next_connection;
        let listening = self.hosts.get_mut(&to).filter(|host| host.is_up)?;
        listening.backlog.as_mut()?.push_back((arrives, id));
        wake(&mut listening.listener);
        self.next_connection += 1;
        let end = |side: u64, host| End {
            host,
            life: lives[usize::from(side == 1)],
            is_dropped: false,
            chance: Chance::new(self.seed, FIRST_CONNECTION_STREAM + 2 * id + side),
            last_sent: None,
            incoming: VecDeque::new(),
            reader: None,
        };
        self.connections.insert(id, [end(0, from), end(1, to)]);
        Some(id)
    }

    fn end_of(&mut self, id: u64, side: usize) -> &mut End {
        &mut self.connections.get_mut(&id).expect("a connection is known while one of its ends is")[side]
    }

    /// Returns what happens to what one side sends now.
    fn fate(&mut self, id: u64, side: usize, now: Duration) -> Fate {
        let (from, to) = (self.end_of(id, side).host, self.end_of(id, 1 - side).host);
        let link = self.link(from, to);
        let end = self.end_of(id, side);
        if let Some((at, fate)) = end.last_sent
            && at == now
        {
            return fate;
        }
        let fate = Fate { takes: link.takes(&end.chance), is_cut: end.chance.happens(link.cut) };
        end.last_sent = Some((now, fate));
        fate
    }

    /// Sends from one side of a connection to the other.
    fn send(&mut self, id: u64, side: usize, what: What, now: Duration) {
        let (from, to) = (self.end_of(id, side).host, self.end_of(id, 1 - side).host);
        let takes = self.fate(id, side, now).takes;
        let due = (!self.link(from, to).is_down).then(|| now + takes);
        let other = self.end_of(id, 1 - side);
        if other.is_dropped {
            return;
        }
        // In order: nothing overtakes.
        let after = other.incoming.back().map(|last| last.due);
        let due = match (after, due) {
            (Some(None), _) | (_, None) => None,
            (Some(Some(last)), Some(due)) => Some(last.max(due)),
            (None, due) => due,
        };
        other.incoming.push_back(Piece { due, what });
        wake(&mut other.reader);
    }

    /// Takes what one side writes.
    fn write(&mut self, id: u64, side: usize, bytes: Bytes, now: Duration) {
        let (from, to) = (self.end_of(id, side).host, self.end_of(id, 1 - side).host);
        let peer = self.end_of(id, 1 - side);
        let (is_gone, peer_life) = (peer.is_dropped, peer.life);
        if is_gone {
            // Who is there now knows nothing of this connection; who is not there says nothing.
            let host = self.hosts.get(&to);
            if host.is_some_and(|host| host.is_up && host.life >= peer_life) && !self.is_cut_off(from, to) {
                let (there, back) = (self.link(from, to), self.link(to, from));
                let own = self.end_of(id, side);
                let due = Some(now + there.takes(&own.chance) + back.takes(&own.chance));
                own.incoming.push_back(Piece { due, what: What::Reset });
                wake(&mut own.reader);
            }
            return;
        }
        if self.fate(id, side, now).is_cut {
            self.send(id, side, What::Reset, now);
            self.send(id, 1 - side, What::Reset, now);
            return;
        }
        self.send(id, side, What::Bytes(bytes), now);
    }

    /// Lets what waited for a link arrive.
    fn release(&mut self, from: Address, to: Address, now: Duration) {
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            for side in [0, 1] {
                let (sender, receiver) = (self.end_of(id, side).host, self.end_of(id, 1 - side).host);
                if (sender, receiver) != (from, to) {
                    continue;
                }
                let due = now + self.link(from, to).takes(&self.end_of(id, side).chance);
                let end = self.end_of(id, 1 - side);
                let mut is_released = false;
                for piece in end.incoming.iter_mut().filter(|piece| piece.due.is_none()) {
                    piece.due = Some(due);
                    is_released = true;
                }
                if is_released {
                    wake(&mut end.reader);
                }
            }
        }
    }

    fn drop_end(&mut self, id: u64, side: usize, now: Duration) {
        let Some(ends) = self.connections.get(&id) else { return };
        if !ends[side].is_dropped {
            self.end_of(id, side).is_dropped = true;
            self.send(id, side, What::End, now);
        }
        if self.connections.get(&id).is_some_and(|ends| ends.iter().all(|end| end.is_dropped)) {
            self.connections.remove(&id);
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

#[derive(Debug)]
struct Dialler {
    network: Network,
    from: Address,
    to: Address,
}

impl Dial for Dialler {
    fn dial(&self) -> Dialling {
        let connecting = self.network.clone().connect(self.from, self.to);
        Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn server::Stream>) })
    }
}

/// Accepts connections for as long as its machine is on.
#[derive(Debug)]
pub struct Listener {
    network: Network,
    host: Address,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stream for Listener {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let now = self.network.clock.now();
        let network = self.network.clone();
        let mut shared = network.lock();
        let host = shared.hosts.entry(self.host).or_default();
        let hushed_until = host.hushed_until;
        let Some(backlog) = &mut host.backlog else { return Poll::Ready(None) };
        match backlog.front().map(|&(due, id)| (due.max(hushed_until), id)) {
            Some((due, id)) if due <= now => {
                backlog.pop_front();
                drop(shared);
                Poll::Ready(Some(Ok(Connection::new(network, id, 1))))
            }
            next => {
                host.listener = Some(context.waker().clone());
                drop(shared);
                wait_until(&mut self.timer, next.map(|(due, _)| due.saturating_sub(now)), context);
                Poll::Pending
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let now = self.network.clock.now();
        let mut shared = self.network.lock();
        let backlog = shared.hosts.entry(self.host).or_default().backlog.take();
        // Nobody will accept these: their makers learn of it as from a system whose program has ended.
        for (_, id) in backlog.into_iter().flatten() {
            shared.send(id, 1, What::Reset, now);
            shared.end_of(id, 1).is_dropped = true;
        }
    }
}

/// One end of a connection, as its owner has it.
#[derive(Debug)]
pub struct Connection {
    network: Network,
    id: u64,
    side: usize,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    fn new(network: Network, id: u64, side: usize) -> Self {
        Self { network, id, side, timer: None }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (network, id, side) = (self.network.clone(), self.id, self.side);
        let now = network.clock.now();
        let mut shared = network.lock();
        let host = shared.end_of(id, side).host;
        let hushed_until = shared.hosts.get(&host).map_or(Duration::ZERO, |host| host.hushed_until);
        let end = shared.end_of(id, side);
        let next = end.incoming.front().map(|piece| piece.due.map(|due| due.max(hushed_until)));
        if let (Some(Some(due)), Some(piece)) = (next, end.incoming.front_mut())
            && due <= now
        {
            return Poll::Ready(match &mut piece.what {
                What::Bytes(bytes) => {
                    let length = bytes.len().min(buffer.remaining());
                    buffer.put_slice(&bytes[..length]);
                    bytes.advance(length);
                    if bytes.is_empty() {
                        end.incoming.pop_front();
                    }
                    Ok(())
                }
                What::End => Ok(()),
                What::Reset => Err(io::ErrorKind::ConnectionReset.into()),
            });
        }
        end.reader = Some(context.waker().clone());
        drop(shared);
        wait_until(&mut self.timer, next.flatten().map(|due| due.saturating_sub(now)), context);
        Poll::Pending
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let now = self.network.clock.now();
        let mut shared = self.network.lock();
        let is_reset = |piece: &Piece| piece.what == What::Reset && piece.due.is_some_and(|due| due <= now);
        if shared.end_of(self.id, self.side).incoming.iter().any(is_reset) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        shared.write(self.id, self.side, Bytes::copy_from_slice(bytes), now);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = self.network.clock.now();
        self.network.lock().send(self.id, self.side, What::End, now);
        Poll::Ready(Ok(()))
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl Drop for Connection {
    fn drop(&mut self) {
        let now = self.network.clock.now();
        self.network.lock().drop_end(self.id, self.side, now);
    }
}

/// Has the task of `context` polled again after `wait`, if that is known.
fn wait_until(timer: &mut Option<Pin<Box<Sleep>>>, wait: Option<Duration>, context: &mut Context<'_>) {
    let Some(wait) = wait else {
        *timer = None;
        return;
    };
    let due = Instant::now() + wait;
    let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
    timer.as_mut().reset(due);
    if timer.as_mut().poll(context).is_ready() {
        context.waker().wake_by_ref();
    }
}
