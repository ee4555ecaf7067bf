//! The server dies, or its store fails, while it signs (ISS-07): what was given out is in the log.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
};

use futures_util::future::BoxFuture;
use tokio::{sync::mpsc, task::JoinSet};
use tonic::{Code, transport::Channel};
use weft_api::{
    channel::{ALPN_H2, connect, connect_unix},
    pb::{
        identity::{GetBundleRequest, IssueSvidRequest, identity_client::IdentityClient},
        management::management_client::ManagementClient,
    },
};
use weft_identity::{
    bundle::{TrustBundle, TrustBundles},
    csr::SigningRequest,
    svid::{Serial, Svid},
    tls::{BundleSlot, ExpectedPeer, SvidSlot, client_config},
};

use super::{agent_token, issue_by, join_by, workload};
use crate::{
    alarms::Alarm,
    authority::InstanceAuthority,
    clock::Clock,
    config::Config,
    core::Core,
    harness::agent,
    issuer::Issuer,
    layout,
    renewals::{self, Chain},
    samples::{self, Rig as Shop},
    store::{
        Entry, Key, LeaseId, Page, Prefix, Revision, Status, Store, StoreError, Ttl, Txn, Watch,
        embedded::{Bounds, EmbeddedStore, Settings},
    },
    throttle::Throttle,
};

/// Tells the child where its state is.
const DIRECTORY: &str = "WEFT_SERVER_KILL_TEST";
/// How often the child is killed; the long form sets another number.
const ROUNDS: &str = "WEFT_LONG_KILLS";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn iss_07_a_killed_server_has_logged_every_certificate_that_it_gave_out() {
    let rounds = std::env::var(ROUNDS).ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let folder = tempfile::tempdir().unwrap();
    let mut given = Vec::new();
    for round in 0..rounds {
        let mut child = Running::start(folder.path());
        let node = child.node(&format!("host{round}")).await;
        given.push(node.serial().clone());
        let (sender, mut received) = mpsc::channel(64);
        let mut clients = JoinSet::new();
        for number in 0..4 {
            clients.spawn(ask_until_the_end(child.dial(&node).await, number, sender.clone()));
        }
        drop(sender);
        // Killed at another moment in each round, counted in certificates.
        let moment = given.len() + 3 + round * 7 % 29;
        while let Some(serial) = received.recv().await {
            given.push(serial);
            if given.len() == moment {
                child.kill();
            }
        }
        let store = open(folder.path()).await;
        for serial in &given {
            let logged = store.get(&layout::issued(serial.as_bytes())).await.unwrap();
            assert!(logged.is_some(), "round {round}: {serial} was given out and is not in the log");
        }
    }
    println!("{rounds} kills, {} certificates, all in the log", given.len());
    assert!(given.len() > 2 * rounds, "too few certificates to say anything: {}", given.len());
}

/// Asks for one certificate after the other, and tells of each that came.
async fn ask_until_the_end(channel: Channel, number: usize, given: mpsc::Sender<Serial>) {
    let id = workload(&format!("s{number}"));
    while let Ok(svid) = issue_by(IdentityClient::new(channel.clone()), &id).await {
        if given.send(svid.serial().clone()).await.is_err() {
            return;
        }
    }
}

/// Not a test of its own: the server that the one above kills. Without its directory it returns at once.
#[test]
fn the_child_serves_until_it_is_killed() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let server = super::Server::start(config(Path::new(&directory))).unwrap();
    println!("\nserving {} {}", server.control_addr(), server.socket_path().display());
    loop {
        std::thread::park();
    }
}

#[tokio::test]
async fn iss_07_what_the_store_did_not_take_is_not_given_out() {
    let shop = Shop::start().await;
    shop.put_shop().await;
    let store = Arc::new(Moody::over(&shop));
    let (issuer, _state) = issuer(&shop, Arc::clone(&store) as Arc<dyn Store>).await;
    let caller = agent("hostb", samples::far());
    let ask = async || {
        let (_, csr) = SigningRequest::create().unwrap();
        let id = samples::identity("shop", "charge").to_string();
        issuer.issue(&caller, IssueSvidRequest { spiffe_id: id, csr, ..Default::default() }).await
    };
    assert_eq!(ask().await.unwrap().chain.len(), 2);
    let logged = async || shop.core.store.list_all(&layout::issuances()).await.unwrap().entries.len();
    let before = logged().await;

    store.mood.store(REFUSES, Ordering::Relaxed);
    assert!(ask().await.is_err(), "nothing is given out that is not written");
    assert_eq!(logged().await, before);

    store.mood.store(FORGETS_TO_SAY, Ordering::Relaxed);
    assert!(ask().await.is_err(), "nor what may not be written");
    assert_eq!(logged().await, before + 1, "the log may hold more than was given out, never less");

    store.mood.store(WELL, Ordering::Relaxed);
    ask().await.unwrap();
    assert_eq!(logged().await, before + 2);
}

/// What a server reads of etcd is what has come to it so far. Another one has renewed the certificate just now, and the agent
/// comes with it at once: that is no copy (ISS-04).
#[tokio::test]
async fn iss_04_a_certificate_that_another_server_has_just_given_out_is_no_copys() {
    let shop = Shop::start().await;
    let (node, caller) = ("hostb".parse().unwrap(), agent("hostb", samples::far()));
    let presented = caller.peer.as_ref().unwrap().serial.to_string();
    let write = async |confirmed: &str, pending: Option<&str>| {
        let chain = Chain { confirmed: confirmed.to_owned(), pending: pending.map(ToOwned::to_owned) };
        shop.core.store.txn(Vec::new(), vec![renewals::start(&node, &chain)]).await.unwrap();
    };
    let read = async || shop.core.store.get(&layout::renewals(&node)).await.unwrap().unwrap();
    write("01", None).await;
    let store = Arc::new(Moody::over(&shop));
    let core = Core { store: Arc::clone(&store) as Arc<dyn Store>, ..shop.core.as_ref().clone() };

    *store.old.lock().unwrap() = Some(read().await);
    write("01", Some(&presented)).await;
    renewals::seen(&core, &caller, &node).await.unwrap();
    assert!(String::from_utf8_lossy(&read().await.value).contains(&presented));
    assert_eq!(core.alarms.count(Alarm::OlderCopy), 0);

    // One that was replaced everywhere is refused by whoever knows it, and by whoever learns of it now.
    write("02", None).await;
    let refused = renewals::seen(&core, &caller, &node).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    *store.old.lock().unwrap() = Some(read().await);
    write("03", None).await;
    assert_eq!(renewals::seen(&core, &caller, &node).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(core.alarms.count(Alarm::OlderCopy), 2);
}

const WELL: u8 = 0;
const REFUSES: u8 = 1;
const FORGETS_TO_SAY: u8 = 2;

/// A store that fails when it is told to: before a commit, or after it and before the answer.
struct Moody {
    inner: Arc<dyn Store>,
    mood: AtomicU8,
    /// What stood under a key, and is shown until a conflict is told.
    old: Mutex<Option<Entry>>,
}

impl Moody {
    fn over(shop: &Shop) -> Self {
        Self { inner: Arc::clone(&shop.core.store), mood: AtomicU8::new(WELL), old: Mutex::default() }
    }
}

impl Store for Moody {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        let old = self.old.lock().unwrap().clone().filter(|entry| entry.key == *key);
        if old.is_some() {
            return Box::pin(async move { Ok(old) });
        }
        self.inner.get(key)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.inner.list(prefix, after, limit)
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            match self.mood.load(Ordering::Relaxed) {
                REFUSES => Err(StoreError::Closed),
                FORGETS_TO_SAY => {
                    self.inner.commit(txn).await?;
                    Err(StoreError::Closed)
                }
                _ => {
                    let done = self.inner.commit(txn).await;
                    if matches!(done, Err(StoreError::Conflict(_))) {
                        *self.old.lock().unwrap() = None;
                    }
                    done
                }
            }
        })
    }

    fn watch(&self, prefix: Prefix, from: Revision) -> BoxFuture<'_, Result<Watch, StoreError>> {
        self.inner.watch(prefix, from)
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.compact(revision)
    }

    fn grant(&self, ttl: Ttl) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.inner.grant(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Ttl, StoreError>> {
        self.inner.keep_alive(lease)
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.inner.revoke(lease)
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, StoreError>> {
        self.inner.status()
    }
}

async fn issuer(shop: &Shop, store: Arc<dyn Store>) -> (Issuer, tempfile::TempDir) {
    let state = tempfile::tempdir().unwrap();
    let config = config(state.path());
    std::fs::create_dir_all(&config.state_dir).unwrap();
    let core = Core { store, ..shop.core.as_ref().clone() };
    let (clock, domain) = (core.clock.clone(), core.trust_domain.clone());
    let authority =
        InstanceAuthority::open(&*core.store, &clock, &config.state_dir, &domain, config.identity).await;
    let throttle = Arc::new(Throttle::new(&config.limits, clock));
    (Issuer::new(core, Arc::new(authority.unwrap()), throttle, 8), state)
}

fn config(folder: &Path) -> Config {
    let text = format!(
        "trustDomain: corp.example\nstore: {{embedded: {{path: {:?}}}}}\nrunDir: {:?}\n\
         listen: {{control: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", metrics: \"127.0.0.1:0\"}}\n\
         limits: {{joinsPerSecond: 1000, joinBurst: 1000}}\n",
        folder.join("state"),
        folder.join("run"),
    );
    Config::parse(&text, "test").unwrap()
}

async fn open(folder: &Path) -> EmbeddedStore {
    let settings = Settings { directory: folder.join("state"), bounds: Bounds::default() };
    EmbeddedStore::open(settings, Clock::system(), Arc::default()).await.unwrap()
}

/// A server in a process of its own.
struct Running {
    child: Child,
    control: std::net::SocketAddr,
    socket: PathBuf,
}

impl Running {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "server::tests::crash::the_child_serves_until_it_is_killed"])
            .env(DIRECTORY, folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut lines = output.lines().map_while(Result::ok);
        let line = lines.find_map(|line| line.strip_prefix("serving ").map(ToOwned::to_owned));
        let line = line.expect("the child says where it serves");
        let (control, socket) = line.split_once(' ').unwrap();
        Self { control: control.parse().unwrap(), socket: socket.into(), child }
    }

    fn kill(&mut self) {
        // Killed twice it is as dead as once.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    async fn node(&self, name: &str) -> Svid {
        let local = connect_unix(&self.socket).await.unwrap();
        let made = ManagementClient::new(local).create_token(agent_token(name)).await.unwrap().into_inner();
        let token: weft_api::token::JoinToken = made.token.parse().unwrap();
        join_by(IdentityClient::new(self.channel(None).await), token.secret(), name).await.unwrap()
    }

    async fn dial(&self, svid: &Svid) -> Channel {
        self.channel(Some(svid)).await
    }

    async fn channel(&self, svid: Option<&Svid>) -> Channel {
        let local = connect_unix(&self.socket).await.unwrap();
        let told = IdentityClient::new(local).get_bundle(GetBundleRequest {}).await.unwrap().into_inner();
        let roots = told.roots.into_iter().map(Into::into).collect();
        let bundle = TrustBundle::new(told.trust_domain.parse().unwrap(), roots, told.sequence).unwrap();
        let slot = svid.map(|svid| {
            let slot = SvidSlot::empty();
            slot.publish(svid.clone());
            slot
        });
        let bundles = BundleSlot::new(TrustBundles::from(bundle));
        let tls = client_config(slot, bundles, ExpectedPeer::AnyServerOf(super::domain()), &[ALPN_H2]);
        connect(&[self.control.into()], Arc::new(tls), "server.weft").await.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
