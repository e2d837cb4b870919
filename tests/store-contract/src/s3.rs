//! An independent S3 server (s3s-fs) over real connections, with faults that a client sees as HTTP responses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::integration::*;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::RwLock;

const BUCKET: &str = "study";
const KEY: [&str; 2] = ["key-of-tests", "sekret-of-tests"];

/// A fault of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The request is refused.
    Refused,
    /// The request succeeds, but the response reports an error.
    AnswerLost,
}

/// A running server on its own threads. Dropping it stops the server.
struct Server {
    folder: TempDir,
    endpoint: String,
    requests: Arc<AtomicU64>,
    faults: Arc<AtomicU64>,
    runtime: Runtime,
}

impl Server {
    /// `fault` gets the number of each request, starting at 1.
    fn start(fault: impl Fn(u64) -> Option<Fault> + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY[0], KEY[1]));
        let service = service.build();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (requests, faults) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        runtime.spawn(accept(listener, service, Arc::new(fault), Arc::clone(&requests), Arc::clone(&faults)));
        Self { folder, endpoint, requests, faults, runtime }
    }

    /// The bucket as a folder.
    fn bucket(&self) -> PathBuf {
        self.folder.path().join(BUCKET)
    }

    fn store(&self) -> AmazonS3 {
        AmazonS3Builder::new()
            .with_bucket_name(BUCKET)
            .with_region("us-east-1")
            .with_endpoint(&self.endpoint)
            .with_allow_http(true)
            .with_access_key_id(KEY[0])
            .with_secret_access_key(KEY[1])
            .build()
            .unwrap()
    }

    fn program(&self, program: &Path, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(root()).env("AWS_ENDPOINT_URL", &self.endpoint);
        let [key, secret] = KEY;
        for (name, value) in
            [("AWS_REGION", "us-east-1"), ("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)]
        {
            command.env(name, value);
        }
        command.output().unwrap()
    }
}

async fn accept(
    listener: TcpListener,
    service: S3Service,
    fault: Arc<dyn Fn(u64) -> Option<Fault> + Send + Sync>,
    requests: Arc<AtomicU64>,
    faults: Arc<AtomicU64>,
) {
    // The server keeps an object and its ETag in two files, and checks a condition before it writes. Neither is
    // atomic: a read could pair an old object with a new ETag. So a request that changes objects runs alone.
    let objects = Arc::new(RwLock::new(()));
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let (service, fault) = (service.clone(), Arc::clone(&fault));
        let (requests, faults, objects) = (Arc::clone(&requests), Arc::clone(&faults), Arc::clone(&objects));
        let answer = service_fn(move |request: Request<Incoming>| {
            let request = request.map(s3s::Body::from);
            let met = fault(requests.fetch_add(1, Relaxed) + 1);
            faults.fetch_add(u64::from(met.is_some()), Relaxed);
            let (service, objects) = (service.clone(), Arc::clone(&objects));
            async move {
                let (_shared, _alone) = match *request.method() {
                    Method::GET | Method::HEAD => (Some(objects.read().await), None),
                    _ => (None, Some(objects.write().await)),
                };
                let unavailable = || {
                    let response = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE);
                    Ok(response.body(s3s::Body::empty()).unwrap())
                };
                match met {
                    Some(Fault::Refused) => unavailable(),
                    Some(Fault::AnswerLost) => service.call(request).await.and_then(|_| unavailable()),
                    None => service.call(request).await,
                }
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer));
    }
}

/// The repository.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The program, where the variable names it.
fn program() -> Option<PathBuf> {
    let program = std::env::var_os("NEUROSIEVE_PROGRAM").map(PathBuf::from);
    if program.is_none() {
        println!("skipped: NEUROSIEVE_PROGRAM is not set (make test sets it)");
    }
    program
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

/// The contents of the tables, except times and ids of contents and runs.
fn contents(server: &Server, program: &Path, tables: &str) -> Vec<Value> {
    [
        "SELECT scan_id, anomaly_score, n_tokens, n_findings, brain_volume_ml FROM raw.scans ORDER BY 1",
        "SELECT scan_id, stage, kind, permanent FROM raw.failures ORDER BY 1",
        "SELECT scan_id, count(*) AS n, sum(code) AS codes, max(p_anomalous) AS p FROM raw.tokens GROUP BY 1 ORDER BY 1",
        "SELECT scan_id, finding, volume_ml, region FROM raw.findings ORDER BY 1, 2",
        "SELECT scan_id, mask, brain, score FROM raw.masks ORDER BY 1",
    ]
    .into_iter()
    .map(|sql| {
        let output = server.program(program, &["sql", "--tables", tables, "--format", "json", "-c", sql]);
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    })
    .collect()
}

/// The server fails the rest of the suite: it ignores conditions on a GET, and fails on a request for a folder.
#[test]
fn the_server_supports_the_operations_that_tables_need() {
    // Each test needs an empty bucket.
    let [first, second, third, fourth] = [(); 4].map(|()| Server::start(|_| None));
    first.runtime.block_on(put_opts(&first.store(), true));
    second.runtime.block_on(stream_get(&second.store()));
    third.runtime.block_on(list_with_delimiter(&third.store()));
    fourth.runtime.block_on(rename_and_copy(&fourth.store()));
}

/// A fast run that commits every scan.
fn run<'a>(cohort: &'a str, tables: &'a str) -> Vec<&'a str> {
    let mut run = vec!["run", "pipelines/demo.toml", "--cohort", cohort, "--tables", tables, "--device", "cpu"];
    run.extend(["--set", "score.method=threshold", "--set", "tables.commit_scans=1"]);
    run
}

#[test]
fn a_bucket_that_fails_one_request_in_16_gives_the_tables_of_an_undisturbed_run() {
    let Some(program) = program() else { return };
    // One request in 16 fails; half of those succeed on the server, and only the response is lost.
    let server = Server::start(|n| match n % 32 {
        9 => Some(Fault::Refused),
        25 => Some(Fault::AnswerLost),
        _ => None,
    });
    let cohort = server.bucket().join("cohort").display().to_string();
    let synth = ["synth", &cohort, "--subjects", "8", "--lesions", "2", "--corrupt", "1", "--spacing", "4"];
    let made = server.program(&program, &synth);
    assert!(made.status.success(), "{}", text(&made));
    let folder = tempfile::tempdir().unwrap();
    let calm = folder.path().join("calm").display().to_string();
    let undisturbed = server.program(&program, &run(&cohort, &calm));
    assert_eq!(undisturbed.status.code(), Some(3), "{}", text(&undisturbed));
    assert_eq!(server.requests.load(Relaxed), 0, "the undisturbed run does not use the server");

    let tables = format!("s3://{BUCKET}/tables");
    let bucket = format!("s3://{BUCKET}/cohort");
    let disturbed = server.program(&program, &run(&bucket, &tables));
    assert_eq!(disturbed.status.code(), Some(3), "{}", text(&disturbed));
    assert!(!text(&disturbed).contains(KEY[1]), "a secret is printed: {}", text(&disturbed));
    let (requests, faults) = (server.requests.load(Relaxed), server.faults.load(Relaxed));
    println!("{faults} of {requests} requests failed");
    assert!(requests > 100 && faults >= requests / 20, "{faults} of {requests} requests failed");
    assert_eq!(contents(&server, &program, &tables), contents(&server, &program, &calm));

    let again = server.program(&program, &run(&bucket, &tables));
    assert!(again.status.code() == Some(3) && text(&again).contains("Nothing to do"), "{}", text(&again));
}

#[test]
fn two_runs_at_once_in_a_bucket_leave_one_result_of_each_scan() {
    let Some(program) = program() else { return };
    let server = Server::start(|_| None);
    let cohort = server.bucket().join("cohort").display().to_string();
    let synth = ["synth", &cohort, "--subjects", "6", "--lesions", "1", "--spacing", "4"];
    let made = server.program(&program, &synth);
    assert!(made.status.success(), "{}", text(&made));
    let (tables, bucket) = (format!("s3://{BUCKET}/tables"), format!("s3://{BUCKET}/cohort"));
    let outputs = std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| server.program(&program, &run(&bucket, &tables))));
        both.map(|one| one.join().unwrap())
    });
    for output in &outputs {
        assert!(output.status.success(), "{}", text(output));
    }
    let sql = "SELECT count(*) AS n, count(DISTINCT scan_id) AS scans FROM raw.scans";
    let counted = server.program(&program, &["sql", "--tables", &tables, "--format", "json", "-c", sql]);
    let counted: Value = serde_json::from_slice(&counted.stdout).unwrap();
    assert_eq!(counted, serde_json::json!([{"n": 6, "scans": 6}]));
}
