// SPDX-License-Identifier: MIT OR Apache-2.0
//! Resolves names as the C library does (`/etc/hosts`, `nsswitch.conf`, DNS).
//!
//! `getaddrinfo` blocks until the last name server has failed to answer, for up to a minute, and cannot
//! be cancelled. So it runs on a few threads of its own: [`THREADS`] for the whole process, however
//! many names there are, with one look-up per name, whose result goes to all requests. Neither the
//! shutdown of a runtime nor the end of the process waits for these threads. A name whose requests were
//! all cancelled is not looked up.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{SocketAddr, ToSocketAddrs},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
};

use tokio::sync::oneshot;

/// The number of names that are looked up at the same time.
const THREADS: usize = 8;

type Found = io::Result<Vec<SocketAddr>>;
type Ask = dyn Fn(&str) -> Found + Send + Sync;

/// The addresses of `name:port`. Takes as long as the C library does; the caller may cancel it.
///
/// The answer is that of the network and mount namespace of the process.
///
/// # Errors
/// When the name has no address, or the name servers do not answer.
pub(crate) async fn look_up(name: &str) -> Found {
    static PROCESS: LazyLock<Pool> = LazyLock::new(|| Pool::new(ask_system));
    match name.parse() {
        Ok(address) => Ok(vec![address]),
        Err(_) => PROCESS.look_up(name).await,
    }
}

/// The C library parses `[fe80::1%eth0]:51830` too, but without the brackets.
fn ask_system(name: &str) -> Found {
    let scoped = name
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("]:"));
    let port = scoped.and_then(|(_, port)| port.parse::<u16>().ok());
    Ok(match (scoped, port) {
        (Some((host, _)), Some(port)) => (host, port).to_socket_addrs()?.collect(),
        _ => name.to_socket_addrs()?.collect(),
    })
}

#[derive(Clone)]
struct Pool {
    ask: Arc<Ask>,
    work: Arc<Mutex<Work>>,
}

#[derive(Default)]
struct Work {
    /// Names that no thread has taken, in the order of the requests.
    queue: VecDeque<String>,
    /// The pending requests for each name, taken or not.
    waiting: HashMap<String, Vec<oneshot::Sender<Found>>>,
    threads: usize,
}

impl Pool {
    fn new(ask: impl Fn(&str) -> Found + Send + Sync + 'static) -> Self {
        Self {
            ask: Arc::new(ask),
            work: Arc::default(),
        }
    }

    async fn look_up(&self, name: &str) -> Found {
        let (reply, answer) = oneshot::channel();
        self.enqueue(name, reply)?;
        answer
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the look-up was given up")))
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, name: &str, reply: oneshot::Sender<Found>) -> io::Result<()> {
        let mut work = self.lock();
        if let Some(waiting) = work.waiting.get_mut(name) {
            waiting.retain(|reply| !reply.is_closed());
            waiting.push(reply);
            return Ok(());
        }
        if work.threads < THREADS {
            match self.spawn() {
                Ok(()) => work.threads += 1,
                // The existing threads do the work.
                Err(_) if work.threads > 0 => {}
                Err(error) => return Err(error),
            }
        }
        work.waiting.insert(name.to_owned(), vec![reply]);
        work.queue.push_back(name.to_owned());
        Ok(())
    }

    /// A thread that ends when there is no work left.
    fn spawn(&self) -> io::Result<()> {
        let pool = self.clone();
        let thread = thread::Builder::new().name("look-up".to_owned());
        // No thread joins it: see above.
        thread.spawn(move || pool.run()).map(drop)
    }

    fn run(&self) {
        while let Some(name) = self.next() {
            let found = (self.ask)(&name);
            let waiting = self.lock().waiting.remove(&name);
            for reply in waiting.into_iter().flatten() {
                // The request may have been cancelled.
                let _ = reply.send(copy(&found));
            }
        }
    }

    /// The next name with a pending request; `None` ends the thread.
    fn next(&self) -> Option<String> {
        let mut work = self.lock();
        while let Some(name) = work.queue.pop_front() {
            let waiting = work.waiting.get(&name);
            if waiting.is_some_and(|all| all.iter().any(|reply| !reply.is_closed())) {
                return Some(name);
            }
            work.waiting.remove(&name);
        }
        work.threads -= 1;
        None
    }
}

fn copy(found: &Found) -> Found {
    match found {
        Ok(addresses) => Ok(addresses.clone()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Condvar, atomic::AtomicUsize, atomic::Ordering},
        time::Duration,
    };

    use tokio::task::JoinSet;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Stubs of name servers that answer on command, and a record of their queries.
    #[derive(Default)]
    struct Servers {
        answers: Mutex<bool>,
        told: Condvar,
        asked: Mutex<Vec<String>>,
        at_once: AtomicUsize,
        most_at_once: AtomicUsize,
    }

    impl Servers {
        fn ask(&self, name: &str) -> Found {
            let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
            self.asked.lock().unwrap().push(name.to_owned());
            let answers = self.answers.lock().unwrap();
            drop(self.told.wait_while(answers, |answers| !*answers).unwrap());
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            match name.strip_prefix("host-") {
                Some(_) => Ok(vec![SocketAddr::from(([192, 0, 2, 1], 7))]),
                None => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
            }
        }

        fn answer(&self) {
            *self.answers.lock().unwrap() = true;
            self.told.notify_all();
        }

        fn asked(&self) -> usize {
            self.asked.lock().unwrap().len()
        }
    }

    fn pool() -> (Arc<Servers>, Pool) {
        let servers = Arc::new(Servers::default());
        let asked = servers.clone();
        (servers, Pool::new(move |name| asked.ask(name)))
    }

    fn block_on<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async { tokio::time::timeout(LIMIT, test).await.expect("in time") })
    }

    async fn until(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn many_names_in_an_outage_take_few_threads_and_are_all_found_after_it() {
        block_on(async {
            let (servers, pool) = pool();
            let mut asking = JoinSet::new();
            for number in 0..300 {
                let pool = pool.clone();
                asking.spawn(async move { pool.look_up(&format!("host-{number}")).await });
            }
            until(|| pool.lock().waiting.len() == 300 && servers.asked() == THREADS).await;
            assert_eq!(pool.lock().threads, THREADS);
            servers.answer();
            while let Some(found) = asking.join_next().await {
                assert_eq!(found.unwrap().unwrap().len(), 1);
            }
            assert_eq!(servers.most_at_once.load(Ordering::SeqCst), THREADS);
            until(|| pool.lock().threads == 0).await;
            assert!(pool.lock().waiting.is_empty());
        });
    }

    #[test]
    fn a_name_is_looked_up_once_for_all_that_ask() {
        block_on(async {
            let (servers, pool) = pool();
            let mut asking = JoinSet::new();
            for _ in 0..20 {
                let pool = pool.clone();
                asking.spawn(async move { pool.look_up("nowhere").await });
            }
            until(|| pool.lock().waiting.values().any(|all| all.len() == 20)).await;
            servers.answer();
            while let Some(found) = asking.join_next().await {
                let error = found.unwrap().unwrap_err();
                assert_eq!(error.to_string(), "no such name");
            }
            assert_eq!(servers.asked(), 1);
            assert!(pool.look_up("host-1").await.is_ok(), "and again");
        });
    }

    #[test]
    fn a_cancelled_name_is_not_looked_up() {
        block_on(async {
            let (servers, pool) = pool();
            let mut asking = JoinSet::new();
            for number in 0..THREADS + 5 {
                let pool = pool.clone();
                asking.spawn(async move { pool.look_up(&format!("host-{number}")).await });
            }
            until(|| pool.lock().waiting.len() == THREADS + 5 && servers.asked() == THREADS).await;
            asking.shutdown().await;
            servers.answer();
            until(|| pool.lock().threads == 0).await;
            assert_eq!(servers.asked(), THREADS);
            assert!(pool.lock().waiting.is_empty());
        });
    }

    #[test]
    fn addresses_need_no_thread() {
        let found = block_on(async { look_up("[2001:db8::1]:7").await });
        assert_eq!(found.unwrap(), ["[2001:db8::1]:7".parse().unwrap()]);
    }
}
