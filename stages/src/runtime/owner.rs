//! One owner for a network on an accelerator: what many workers ask for becomes one call.
//!
//! ```text
//! worker ── request ─┐ bounded            ┌── answer ──► worker
//! worker ── request ─┼──────────► owner ──┼── answer ──► worker
//! worker ── request ─┘   (has the network)└── answer ──► worker
//! ```
//!
//! A GPU is fed best by one thread and by batches, a subvolume asks for one field of view at a time; so the subvolumes of all
//! workers share a call (the structure of the published implementation, Januszewski et al. 2018). The owner starts a call when
//! the batch is full or every worker has asked; it waits for the others [`LINGER`] at most, because a worker may be busy with
//! something else. How requests fall into batches decides the speed alone: an item's result depends on that item alone
//! ([`Network::run`]). Held at a time: one request a worker, each of at most one batch.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Network, NetworkError, NetworkFactory, RuntimeError};

/// How long a call waits for one more request; far below a call's own time, far above a worker's between two requests.
const LINGER: Duration = Duration::from_millis(2);

/// A factory whose networks all ask one owner; it has one network of `inner`, made when the first worker comes and dropped
/// with the last, and calls it with at most `batch` items.
pub fn shared(inner: NetworkFactory, batch: usize) -> NetworkFactory {
    let present: Mutex<Weak<Owner>> = Mutex::new(Weak::new());
    Arc::new(move || {
        let mut present = present.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = match present.upgrade() {
            Some(owner) => owner,
            None => {
                let owner = Arc::new(Owner::start(inner()?, batch.max(1))?);
                *present = Arc::downgrade(&owner);
                owner
            }
        };
        owner.workers.fetch_add(1, Ordering::Relaxed);
        let (answers, answered) = sync_channel(1);
        Ok(Box::new(Client { owner, answers, answered, spare: None }))
    })
}

/// One worker's request: `items` items of every input back to back, and room for as many of the output.
struct Request {
    data: Data,
    items: usize,
    answers: SyncSender<Result<Data, NetworkError>>,
}

/// Travels to the owner and back, so that nothing is allocated per call.
struct Data {
    inputs: Vec<Vec<f32>>,
    out: Vec<f32>,
}

struct Owner {
    /// `None` only while it is dropped.
    requests: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
    workers: Arc<AtomicUsize>,
    batch: usize,
}

impl Owner {
    fn start(network: Box<dyn Network>, batch: usize) -> Result<Self, RuntimeError> {
        let (requests, asked) = sync_channel(batch);
        let workers = Arc::new(AtomicUsize::new(0));
        let serving = Serving { network, asked, workers: workers.clone(), batch };
        let thread = std::thread::Builder::new().name("network owner".into()).spawn(move || serving.run());
        let thread = thread.map_err(|e| RuntimeError::Session {
            model: "of the shared network".into(),
            why: format!("no thread for it: {e}"),
        })?;
        Ok(Self { requests: Some(requests), thread: Some(thread), workers, batch })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the owner of the shared network panicked");
        }
    }
}

/// A worker's side.
struct Client {
    owner: Arc<Owner>,
    answers: SyncSender<Result<Data, NetworkError>>,
    answered: Receiver<Result<Data, NetworkError>>,
    spare: Option<Data>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.owner.workers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Network for Client {
    fn run(&mut self, inputs: &[&[f32]], items: usize, out: &mut [f32]) -> Result<(), NetworkError> {
        let even = items > 0 && out.len().is_multiple_of(items) && inputs.iter().all(|i| i.len().is_multiple_of(items));
        if !even {
            return Err(NetworkError(format!("{items} items do not fit the buffers given")));
        }
        let (each, batch) = (out.len() / items, self.owner.batch);
        for first in (0..items).step_by(batch) {
            let n = batch.min(items - first);
            let cut = inputs.iter().map(|i| &i[first * (i.len() / items)..(first + n) * (i.len() / items)]);
            let mut data = self.spare.take().unwrap_or_else(|| Data { inputs: Vec::new(), out: Vec::new() });
            data.inputs.resize_with(inputs.len(), Vec::new);
            for (to, from) in data.inputs.iter_mut().zip(cut) {
                to.clear();
                to.extend_from_slice(from);
            }
            data.out.resize(n * each, 0.0);
            let gone = || NetworkError("the owner of the shared network has ended".into());
            let requests = self.owner.requests.as_ref().ok_or_else(gone)?;
            let sent = requests.send(Request { data, items: n, answers: self.answers.clone() });
            let answer = sent.ok().and_then(|()| self.answered.recv().ok()).ok_or_else(gone)?;
            let data = answer?;
            out[first * each..(first + n) * each].copy_from_slice(&data.out);
            self.spare = Some(data);
        }
        Ok(())
    }
}

/// The owner's side.
struct Serving {
    network: Box<dyn Network>,
    asked: Receiver<Request>,
    workers: Arc<AtomicUsize>,
    batch: usize,
}

impl Serving {
    fn run(mut self) {
        let (mut inputs, mut out) = (Vec::new(), Vec::new());
        let mut next = self.asked.recv().ok();
        while let Some(first) = next.take() {
            let mut taken = vec![first];
            let mut items = taken[0].items;
            while items < self.batch && taken.len() < self.workers.load(Ordering::Relaxed) {
                match self.asked.recv_timeout(LINGER) {
                    Ok(request) if items + request.items <= self.batch => {
                        items += request.items;
                        taken.push(request);
                    }
                    too_many_or_none => {
                        next = too_many_or_none.ok();
                        break;
                    }
                }
            }
            let made = self.call(&taken, items, &mut inputs, &mut out);
            answer(taken, &out, &made);
            next = next.or_else(|| self.asked.recv().ok());
        }
    }

    fn call(
        &mut self,
        taken: &[Request],
        items: usize,
        inputs: &mut Vec<Vec<f32>>,
        out: &mut Vec<f32>,
    ) -> Result<(), NetworkError> {
        let ports = taken[0].data.inputs.len();
        inputs.resize_with(ports, Vec::new);
        for (port, to) in inputs.iter_mut().enumerate() {
            to.clear();
            for request in taken {
                let from = request.data.inputs.get(port).ok_or_else(|| NetworkError("inputs are missing".into()))?;
                to.extend_from_slice(from);
            }
        }
        out.resize(taken.iter().map(|r| r.data.out.len()).sum(), 0.0);
        let slices: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        self.network.run(&slices, items, out)
    }
}

/// Gives every worker its part; a failed call is every one's failure.
fn answer(taken: Vec<Request>, out: &[f32], made: &Result<(), NetworkError>) {
    let mut rest = out;
    for Request { mut data, answers, .. } in taken {
        let (mine, others) = rest.split_at(data.out.len().min(rest.len()));
        rest = others;
        let result = match made {
            Ok(()) => {
                data.out.copy_from_slice(mine);
                Ok(data)
            }
            Err(NetworkError(why)) => Err(NetworkError(why.clone())),
        };
        if answers.send(result).is_err() {
            tracing::debug!("a worker left before its answer came");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::RuleNetwork;

    const SHAPE: [usize; 3] = [3, 5, 5];
    const N: usize = 75;

    /// A rule network that records the sizes of its calls.
    struct Counting(RuleNetwork, Arc<Mutex<Vec<usize>>>);

    impl Network for Counting {
        fn run(&mut self, inputs: &[&[f32]], items: usize, out: &mut [f32]) -> Result<(), NetworkError> {
            self.1.lock().unwrap().push(items);
            if inputs[0][0] > 100.0 { Err(NetworkError("too bright".into())) } else { self.0.run(inputs, items, out) }
        }
    }

    fn counting(batch: usize) -> (NetworkFactory, Arc<Mutex<Vec<usize>>>) {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = calls.clone();
        let inner: NetworkFactory =
            Arc::new(move || Ok(Box::new(Counting(RuleNetwork::new(SHAPE, 0.0), seen.clone()))));
        (shared(inner, batch), calls)
    }

    fn item(k: usize) -> (Vec<f32>, Vec<f32>) {
        let image = (0..N).map(|i| ((i * (k + 3) * 7) % 11) as f32 - 4.0).collect();
        (image, (0..N).map(|i| if i == N / 2 { 3.0 } else { -3.0 }).collect())
    }

    #[test]
    fn workers_that_share_a_network_get_what_each_would_get_alone() {
        for batch in [1, 2, 5] {
            let (factory, calls) = counting(batch);
            let networks: Vec<_> = (0..4).map(|_| factory().unwrap()).collect();
            std::thread::scope(|scope| {
                for (worker, mut network) in networks.into_iter().enumerate() {
                    scope.spawn(move || {
                        for round in 0..20 {
                            let (image, seed) = item(worker * 20 + round);
                            let (mut got, mut wanted) = (vec![0.0; N], vec![0.0; N]);
                            network.run(&[&image, &seed], 1, &mut got).unwrap();
                            RuleNetwork::new(SHAPE, 0.0).run(&[&image, &seed], 1, &mut wanted).unwrap();
                            assert_eq!(got, wanted);
                        }
                    });
                }
            });
            let calls = calls.lock().unwrap();
            assert_eq!(calls.iter().sum::<usize>(), 80);
            assert!(calls.iter().all(|&n| n <= batch), "{calls:?} with batch {batch}");
        }
    }

    #[test]
    fn a_request_above_the_batch_is_cut_and_a_failure_reaches_who_asked() {
        let (factory, calls) = counting(2);
        let mut network = factory().unwrap();
        let (image, seed) = item(1);
        let (images, seeds) = (image.repeat(5), seed.repeat(5));
        let mut out = vec![0.0; 5 * N];
        network.run(&[&images, &seeds], 5, &mut out).unwrap();
        assert_eq!(*calls.lock().unwrap(), [2, 2, 1]);
        assert!(network.run(&[&[200.0; N], &seed], 1, &mut out[..N]).unwrap_err().to_string().contains("too bright"));
        network.run(&[&image, &seed], 1, &mut out[..N]).unwrap();
        assert!(network.run(&[&image, &seed], 2, &mut out[..N]).is_err());
    }
}
