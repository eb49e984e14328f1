//! How fast tiles become durable at the head, against what bare quinn moves in the same run, and what a gigabyte costs each side.
//!
//! ```text
//! bare:     4 MiB a stream ─► quinn ─► counted and dropped
//! durable:  instrument ─► admit, spool (synced) ─► link ─► archive (synced), ledger (synced) ─► receipt ─► spool gives back
//! ```
//! Windows, datagrams and socket buffers are the same. The sides are two processes, this one and a copy of itself. Spool and
//! archive lie in `KINESIN_BENCH_DIR` (default the folder for temporary files): on a file system in memory the path is
//! measured, on a disk mostly the disk. `cargo bench -p kinesin-tests --bench ingest`
//!
//! Floor, CPU-s/GB on two cores that the bare transfer already fills: quinn 0.85, two BLAKE3 0.28, spool written over 0.22 and
//! read 0.14, one copy out of quinn 0.19, archive 0.29: 1.97, so that 43 % of bare quinn is the most there. Measured 2.4.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command as Process, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
// Its allocator is the program's.
use kinesin as _;
use kinesin_acquire::admit::{AdmitConfig, OnEvent, admit};
use kinesin_acquire::instrument::{Command, Event, Instrument, InstrumentError, RawImage, RawTile};
use kinesin_backpressure::spool::SpoolConfig;
use kinesin_backpressure::{Budget, Bytes, edge};
use kinesin_stages::archive::{Archive, Put};
use kinesin_stream::geometry::{BoxXy, Xy};
use kinesin_stream::ids::{BeamId, MfovId, RegionId, SectionId, SerialIndex, TileKey};
use kinesin_stream::ledger::{Ledger, PlanDigest};
use kinesin_stream::link::{Head, HeadConfig, Keys, LinkSettings, Role, ScopeConfig, make_keys};
use kinesin_stream::pixels::Pixels;
use kinesin_stream::plan::{MfovPlan, PlannedTile, RunPlan, SectionPlan};
use kinesin_stream::runner::Runner;
use kinesin_stream::stage::Flow;
use kinesin_stream::tile::Tile;
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, MtuDiscoveryConfig, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};

const DIGEST: PlanDigest = PlanDigest([9; 32]);
const STREAM: usize = 4 << 20;
const ROUNDS: usize = 3;

/// What is sent: so many mFOVs of so many square tiles.
#[derive(Clone, Copy)]
struct Load {
    mfovs: u32,
    beams: u16,
    side: u32,
}

const LARGE: Load = Load { mfovs: 40, beams: 16, side: 2048 };
const SMALL: Load = Load { mfovs: 100, beams: 91, side: 64 };

impl Load {
    fn tiles(self) -> u64 {
        u64::from(self.mfovs) * u64::from(self.beams)
    }

    fn bytes(self) -> u64 {
        self.tiles() * u64::from(self.side) * u64::from(self.side)
    }
}

/// One run: wall seconds, CPU seconds of the sending and of the receiving side.
struct Cost {
    wall: f64,
    sender: f64,
    receiver: f64,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().position(|a| a == "--side") {
        Some(at) => receiver(&args[at + 1], Path::new(&args[at + 2])),
        None => bench(),
    }
}

fn bench() -> Result<()> {
    let root = std::env::var_os("KINESIN_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    println!("spool and archive in {}", root.display());
    let (mib, gb) = (LARGE.bytes() as f64 / f64::from(1 << 20), LARGE.bytes() as f64 / 1e9);
    let mut speeds = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for (kind, name) in ["bare quinn", "durable"].into_iter().enumerate() {
            let cost = if kind == 0 { bare(&root)? } else { durable(&root, LARGE)? };
            println!(
                "round {round}  {name:<11} {:7.0} MiB/s   {:.2} + {:.2} CPU-s/GB (sender + receiver)",
                mib / cost.wall,
                cost.sender / gb,
                cost.receiver / gb
            );
            speeds[kind].push(mib / cost.wall);
        }
    }
    for s in &mut speeds {
        s.sort_by(f64::total_cmp);
    }
    let median = |s: &Vec<f64>| s[s.len() / 2];
    println!("durable receipts reach {:.0} % of bare quinn (medians)", 100.0 * median(&speeds[1]) / median(&speeds[0]));
    let cost = durable(&root, SMALL)?;
    println!(
        "{} tiles of {} x {} px: {:.0} tiles/s durable, {:.2} + {:.2} CPU-ms a tile",
        SMALL.tiles(),
        SMALL.side,
        SMALL.side,
        SMALL.tiles() as f64 / cost.wall,
        1e3 * cost.sender / SMALL.tiles() as f64,
        1e3 * cost.receiver / SMALL.tiles() as f64
    );
    Ok(())
}

/// The other side as a process, and what it prints.
struct Other {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Other {
    fn start(kind: &str, dir: &Path) -> Result<Self> {
        let mut process = Process::new(std::env::current_exe()?)
            .args(["--side", kind])
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the receiving side")?;
        let said = BufReader::new(process.stdout.take().context("no pipe")?);
        Ok(Self { process, said })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "the receiving side ended early");
        Ok(line.trim().to_owned())
    }

    fn end(mut self) -> Result<f64> {
        let cpu = self.line()?.parse()?;
        anyhow::ensure!(self.process.wait()?.success(), "the receiving side failed");
        Ok(cpu)
    }
}

fn receiver(kind: &str, dir: &Path) -> Result<()> {
    let tokio = runtime()?;
    if kind == "bare" {
        tokio.block_on(bare_receiver(dir))?
    } else {
        durable_receiver(&tokio, dir)?
    }
    println!("{}", cpu_seconds()?);
    Ok(())
}

fn bare(root: &Path) -> Result<Cost> {
    let dir = tempfile::tempdir_in(root)?;
    let mut other = Other::start("bare", dir.path())?;
    let addr: SocketAddr = other.line()?.parse()?;
    let tokio = runtime()?;
    let (before, since) = (cpu_seconds()?, Instant::now());
    tokio.block_on(async {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(std::fs::read(dir.path().join("cert"))?.into())?;
        let mut client = ClientConfig::with_root_certificates(Arc::new(roots))?;
        client.transport_config(transport());
        let (socket, config) = socket(([127, 0, 0, 1], 0).into())?;
        let mut endpoint = Endpoint::new(config, None, socket, Arc::new(TokioRuntime))?;
        endpoint.set_default_client_config(client);
        let connection = endpoint.connect(addr, "bench")?.await?;
        let chunk = bytes::Bytes::from(vec![7_u8; STREAM]);
        let mut left = LARGE.bytes() as usize / STREAM;
        let mut sending = tokio::task::JoinSet::new();
        while left > 0 || !sending.is_empty() {
            while left > 0 && sending.len() < 4 {
                left -= 1;
                let (connection, chunk) = (connection.clone(), chunk.clone());
                sending.spawn(async move {
                    let mut stream = connection.open_uni().await?;
                    stream.write_chunk(chunk).await?;
                    stream.finish()?;
                    anyhow::Ok(())
                });
            }
            sending.join_next().await.context("nothing is sent")???;
        }
        let mut done = connection.accept_uni().await?;
        done.read_to_end(8).await?;
        connection.close(VarInt::from_u32(0), b"done");
        anyhow::Ok(())
    })?;
    let wall = since.elapsed().as_secs_f64();
    Ok(Cost { wall, sender: cpu_seconds()? - before, receiver: other.end()? })
}

async fn bare_receiver(dir: &Path) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["bench".into()])?;
    std::fs::write(dir.join("cert"), made.cert.der())?;
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut server = ServerConfig::with_single_cert(vec![made.cert.der().clone()], key.into())?;
    server.transport_config(transport());
    let (socket, config) = socket(([127, 0, 0, 1], 0).into())?;
    let endpoint = Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))?;
    println!("{}", endpoint.local_addr()?);
    let connection = endpoint.accept().await.context("nobody called")?.await?;
    let mut reading = tokio::task::JoinSet::new();
    for _ in 0..LARGE.bytes() as usize / STREAM {
        let mut stream = connection.accept_uni().await?;
        reading.spawn(async move {
            while stream.read_chunk(1 << 20, true).await?.is_some() {}
            anyhow::Ok(())
        });
    }
    while let Some(read) = reading.join_next().await {
        read??;
    }
    let mut done = connection.open_uni().await?;
    done.write_all(b"done").await?;
    done.finish()?;
    connection.closed().await;
    Ok(())
}

/// As the link sets them.
fn transport() -> Arc<TransportConfig> {
    let (settings, mut config, mut discovery) =
        (LinkSettings::default(), TransportConfig::default(), MtuDiscoveryConfig::default());
    discovery.upper_bound(settings.datagram);
    let window = |bytes: Bytes| VarInt::from_u64(bytes.0).unwrap_or(VarInt::MAX);
    config
        .stream_receive_window(window(settings.stream_window))
        .receive_window(window(settings.window()))
        .send_window(settings.window().0)
        .initial_rtt(std::time::Duration::from_millis(20))
        .mtu_discovery_config(Some(discovery));
    Arc::new(config)
}

fn socket(bind: SocketAddr) -> Result<(std::net::UdpSocket, EndpointConfig)> {
    let settings = LinkSettings::default();
    let socket = std::net::UdpSocket::bind(bind)?;
    let buffers = socket2::SockRef::from(&socket);
    buffers.set_recv_buffer_size(settings.socket_buffer.0 as usize)?;
    buffers.set_send_buffer_size(settings.socket_buffer.0 as usize)?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(settings.datagram)?;
    Ok((socket, config))
}

fn durable(root: &Path, load: Load) -> Result<Cost> {
    let dir = tempfile::tempdir_in(root)?;
    make_keys(dir.path(), false)?;
    let mut other = Other::start("durable", dir.path())?;
    let head: SocketAddr = other.line()?.parse()?;
    let tokio = runtime()?;
    let budget = Budget::new();
    let runner = Runner::new(&budget);
    let keys = Keys::load(dir.path(), Role::Scope)?;
    let config = AdmitConfig {
        link: ScopeConfig { head, keys, digest: DIGEST, settings: LinkSettings::default() },
        spool: SpoolConfig {
            disk: Default::default(),
            folder: dir.path().join("spool"),
            capacity: Bytes::mib(512),
            segment: Bytes::mib(64),
            identity: DIGEST.0,
        },
        on_event: OnEvent::default(),
        pace: None,
        status: None,
    };
    let script = Script::new(load);
    let (before, since) = (cpu_seconds()?, Instant::now());
    let sent = tokio.block_on(async {
        let (handle, run) = (tokio.handle().clone(), runner.token("admit"));
        tokio.spawn(async move { admit(script, &handle, &budget, run, config).await }).await
    })??;
    let wall = since.elapsed().as_secs_f64();
    anyhow::ensure!(sent.link.tiles == load.tiles(), "{} of {} tiles durable", sent.link.tiles, load.tiles());
    Ok(Cost { wall, sender: cpu_seconds()? - before, receiver: other.end()? })
}

fn durable_receiver(tokio: &tokio::runtime::Runtime, dir: &Path) -> Result<()> {
    let budget = Budget::new();
    let runner = Runner::new(&budget);
    let ledger = Ledger::open(dir, DIGEST)?;
    let archive = Archive::open(dir, ledger.clone())?;
    let (tx, rx) = edge::<Flow<Tile>>(&budget, "ingest", Bytes::mib(64));
    let keys = Keys::load(dir, Role::Head)?;
    let config =
        HeadConfig { bind: ([127, 0, 0, 1], 0).into(), keys, digest: DIGEST, settings: LinkSettings::default() };
    let head = Head::bind(tokio.handle(), &runner, &budget, config, ledger, tx, |_| {})?;
    println!("{}", head.local_addr());
    let receipts = head.receipts();
    runner.spawn("archive", move |_| {
        while let Some(flow) = rx.recv_blocking() {
            let put = match &*flow {
                Flow::Item(tile) => archive.put(tile, None)?,
                Flow::Lost(loss) => archive.lost(loss)?,
            };
            if let Put::Settled(mfov) = put {
                receipts.durable(mfov);
            }
        }
        Ok(())
    });
    tokio.block_on(head.join());
    Ok(runner.join()?)
}

/// One section of equal tiles, as fast as they are taken.
struct Script {
    plan: RunPlan,
    events: VecDeque<Event>,
    tiles: VecDeque<TileKey>,
    pixels: Pixels,
}

impl Script {
    fn new(load: Load) -> Self {
        let size = Xy::new(load.side, load.side);
        let mfov = |m| {
            let id = MfovId::new(SectionId(0), RegionId(0), m);
            let tile = |b| PlannedTile {
                key: TileKey { mfov: id, beam: BeamId(b) },
                name: format!("{m}_{b}"),
                nominal: Xy::default(),
                size,
            };
            MfovPlan { id, revision: 0, tiles: (0..load.beams).map(tile).collect() }
        };
        let mfovs: Vec<_> = (0..load.mfovs).map(mfov).collect();
        let section =
            SectionPlan { section: SectionId(0), serial: SerialIndex(0), name: "s".into(), version: 0, mfovs };
        let mut events = VecDeque::from([Event::SectionBegins(Arc::new(section.clone()))]);
        for mfov in &section.mfovs {
            events.push_back(Event::MfovBegins(mfov.id));
            events.push_back(Event::MfovEnds(mfov.id));
        }
        events.push_back(Event::SectionEnds(section.section));
        let plan = RunPlan {
            name: "bench".into(),
            beams: load.beams,
            tile_px: size,
            pixel_size_nm: 4.0,
            thickness_nm: 30.0,
            sections: 1,
            mfovs_per_section: load.mfovs,
            extent: BoxXy::default(),
            peak_tiles_per_second: 0.0,
        };
        let side = load.side as usize;
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        let pixels = Pixels::new(side, side, noise.take(side * side).collect::<Vec<u8>>());
        Self { plan, events, tiles: VecDeque::new(), pixels }
    }
}

impl Instrument for Script {
    fn plan(&self) -> &RunPlan {
        &self.plan
    }

    async fn next(&mut self) -> Result<Option<Event>, InstrumentError> {
        if let Some(key) = self.tiles.pop_front() {
            return Ok(Some(Event::Tile(RawTile { key, image: RawImage::Pixels(self.pixels.clone()) })));
        }
        let event = self.events.pop_front();
        if let Some(Event::MfovBegins(mfov)) = &event {
            self.tiles = (0..self.plan.beams).map(|b| TileKey { mfov: *mfov, beam: BeamId(b) }).collect();
        }
        Ok(event)
    }

    async fn command(&mut self, _command: Command) -> Result<(), InstrumentError> {
        Ok(())
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Processor time of this process so far, from the system's account in ticks of 10 ms.
fn cpu_seconds() -> Result<f64> {
    let mut text = String::new();
    std::fs::File::open("/proc/self/stat")?.read_to_string(&mut text)?;
    // The name, in brackets, may hold spaces; user and system time are the 12th and 13th field after it.
    let after = text.rsplit(')').next().context("no name")?;
    let ticks = after.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}
