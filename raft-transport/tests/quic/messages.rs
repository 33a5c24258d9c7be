//! Two hosts over real QUIC: messages, reconnection, bounds.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{Authority, Book, Told, config, envelope, host, start};
use raft_transport::{
    ConnectionEnd, HelloRefusal, Refusal, RefusalKind, TransportEvent, TransportIdentity,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_pass_both_ways_in_order() {
    let (authority, book) = (Authority::new(), Arc::new(Book::default()));
    let (one, _, mut one_hears) = start(config(1, "demo"), authority.identity(1, "demo"), &book);
    let (two, _, mut two_hears) = start(config(2, "demo"), authority.identity(2, "demo"), &book);
    let batch = |from: u64| {
        (from..from + 1_000)
            .map(|n| envelope(7, &n.to_le_bytes()))
            .collect()
    };
    let (first, second): (Vec<_>, Vec<_>) = (batch(0), batch(5_000));
    one.send(host(2), first.clone());
    assert_eq!(
        two_hears.messages(1_000).await,
        first,
        "one group is one lane"
    );
    two.send(host(1), second.clone());
    assert_eq!(one_hears.messages(1_000).await, second);
    let (one, two) = (one.stats(), two.stats());
    assert_eq!((one.messages_sent, two.messages_received), (1_000, 1_000));
    assert_eq!(
        (one.messages_dropped, one.connections, one.refusals),
        (0, 1, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_carries_large_datagrams_is_found() {
    let (authority, book) = (Authority::new(), Arc::new(Book::default()));
    let (one, _, _) = start(config(1, "demo"), authority.identity(1, "demo"), &book);
    let (_two, _, mut two_hears) = start(config(2, "demo"), authority.identity(2, "demo"), &book);
    let mut probe = envelope(7, b"");
    probe.message.body = raft_proto::Body::TimeoutNow;
    // The loopback interface carries 64 KiB; ours is the bound. Discovery halves what is left to
    // know with each probe, and stops within 20 bytes of it.
    while one.stats().path_mtu_bytes_max < 6_400 {
        one.send(host(2), vec![probe.clone()]);
        two_hears.messages(1).await;
    }
    assert!(one.stats().path_mtu_bytes_max <= 6_500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_introduce_themselves_before_anything_else() {
    let (authority, book) = (Authority::new(), Arc::new(Book::default()));
    let (one, _, mut one_hears) = start(config(1, "demo"), authority.identity(1, "demo"), &book);
    let (_two, _, mut two_hears) = start(config(2, "demo"), authority.identity(2, "demo"), &book);
    one.connect(host(2));
    for (ears, peer) in [(&mut one_hears, 2), (&mut two_hears, 1)] {
        ears.wait(|told| match told {
            Told::Hello(hello) => {
                assert_eq!((hello.host, hello.open_count), (host(peer), 1));
                assert_eq!(hello.uuid[0], peer.to_le_bytes()[0]);
                assert_eq!(hello.advertised[..], peer.to_le_bytes());
                Some(())
            }
            other => panic!("{other:?} came before Hello"),
        })
        .await;
        assert_eq!(ears.connected().await, host(peer));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_host_is_refused_and_learns_why() {
    let (authority, book) = (Authority::new(), Arc::new(Book::default()));
    let (one, _, mut one_hears) = start(config(1, "demo"), authority.identity(1, "demo"), &book);
    let (_two, two, mut two_hears) = start(config(2, "demo"), authority.identity(2, "demo"), &book);
    *two.hello.lock().expect("no panic") = Err(HelloRefusal::HostReplaced);
    one.connect(host(2));
    let end = ConnectionEnd::Refused(Refusal::Hello(HelloRefusal::HostReplaced));
    two_hears
        .event(|event| {
            matches!(event, TransportEvent::AcceptFailed { host: Some(from), end: it, .. }
                if *from == host(1) && *it == end)
        })
        .await;
    let end = ConnectionEnd::RefusedByPeer(RefusalKind::HostReplaced);
    let failed = TransportEvent::ConnectFailed { host: host(2), end };
    one_hears.event(|event| *event == failed).await;
    // The operator says forget: the next attempt succeeds by itself.
    *two.hello.lock().expect("no panic") = Ok(());
    assert_eq!(one_hears.connected().await, host(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_peer_is_found_again_and_losses_are_reported() {
    let (authority, book) = (Authority::new(), Arc::new(Book::default()));
    let (one, _, mut one_hears) = start(config(1, "demo"), authority.identity(1, "demo"), &book);
    let (two, _, mut two_hears) = start(config(2, "demo"), authority.identity(2, "demo"), &book);
    one.send(host(2), vec![envelope(7, b"first")]);
    two_hears.messages(1).await;
    two.close();
    let lost = |told| match told {
        Told::Unreachable(to, replicas) if to == host(2) => Some(replicas),
        _ => None,
    };
    let expected = vec![(crate::common::group(7), crate::common::replica(2))];
    assert_eq!(one_hears.wait(lost).await, expected);
    two.closed().await;
    let (_two, _, mut two_hears) = start(config(2, "demo"), authority.identity(2, "demo"), &book);
    assert_eq!(one_hears.connected().await, host(2));
    one.send(host(2), vec![envelope(7, b"second")]);
    assert_eq!(two_hears.messages(1).await, [envelope(7, b"second")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_connection_of_the_same_host_replaces_the_older() {
    let (authority, book) = (Authority::new(), Arc::new(Book::default()));
    let (one, _, _) = start(config(1, "demo"), authority.identity(1, "demo"), &book);
    let (two, _, mut two_hears) = start(config(2, "demo"), authority.identity(2, "demo"), &book);
    one.connect(host(2));
    two_hears.connected().await;
    let (again, _, mut again_hears) =
        start(config(1, "demo"), authority.identity(1, "demo"), &book);
    again.connect(host(2));
    let replaced = TransportEvent::Disconnected {
        host: host(1),
        end: ConnectionEnd::Replaced,
    };
    two_hears.event(|event| *event == replaced).await;
    drop(one);
    two.send(host(1), vec![envelope(3, b"to the newer")]);
    again_hears.messages(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_finds_no_room_is_dropped_counted_and_reported_once() {
    let (authority, book) = (Authority::new(), Arc::new(Book::default()));
    let mut small = config(1, "demo");
    small.limits.queue_bytes_max = 64 << 10;
    let (one, _, mut one_hears) = start(small, authority.identity(1, "demo"), &book);
    // Host 2 has no address: nothing leaves.
    one.send(
        host(2),
        (0..100).map(|_| envelope(9, &[1; 4_096])).collect(),
    );
    let dropped = one.stats().messages_dropped;
    assert!(
        (80..100).contains(&dropped),
        "{dropped} of 100 do not fit into 64 KiB"
    );
    let replicas = one_hears
        .wait(|told| match told {
            Told::Unreachable(_, replicas) => Some(replicas),
            _ => None,
        })
        .await;
    assert_eq!(
        replicas,
        [(crate::common::group(9), crate::common::replica(2))]
    );
    let unknown = TransportEvent::ConnectFailed {
        host: host(2),
        end: ConnectionEnd::NoAddress,
    };
    one_hears.event(|event| *event == unknown).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_for_a_host_that_does_not_dial_grow_no_older_than_their_bound() {
    let (authority, book) = (Authority::new(), Arc::new(Book::default()));
    let mut brief = config(2, "demo");
    brief.limits.queue_age_max = Duration::from_millis(20);
    let (two, _, mut two_hears) = start(brief, authority.identity(2, "demo"), &book);
    two.send(host(1), vec![envelope(9, b"vote for me")]);
    two_hears
        .wait(|told| match told {
            Told::Unreachable(to, _) => (to == host(1)).then_some(()),
            _ => None,
        })
        .await;
    assert_eq!(two.stats().messages_dropped, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_can_be_replaced_while_messages_flow() {
    let (authority, book) = (Authority::new(), Arc::new(Book::default()));
    let (one, _, mut one_hears) = start(config(1, "demo"), authority.identity(1, "demo"), &book);
    let (two, _, mut two_hears) = start(config(2, "demo"), authority.identity(2, "demo"), &book);
    one.send(host(2), vec![envelope(7, b"old")]);
    two_hears.messages(1).await;
    let (newer, other) = (Authority::new(), Authority::new());
    assert!(
        one.replace_identity(&other.identity(3, "demo")).is_err(),
        "another host's"
    );
    one.replace_identity(&newer.identity(1, "demo"))
        .expect("replaced");
    two.replace_identity(&newer.identity(2, "demo"))
        .expect("replaced");
    one.send(host(2), vec![envelope(7, b"on the old connection")]);
    two_hears.messages(1).await;
    one_hears.connected().await;
    two.disconnect(host(1));
    assert_eq!(
        one_hears.connected().await,
        host(2),
        "with the new certificates"
    );
}

/// Without a goodbye only the idle timeout would tell, which is set far beyond the test's patience.
#[test]
fn a_host_that_was_killed_is_noticed_as_soon_as_it_is_back() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime")
    };
    let authority = Authority::new();
    let book = Arc::new(Book::default());
    let patient = |id| {
        let mut config = config(id, "demo");
        config.limits.idle_timeout = Duration::from_secs(600);
        config
    };
    let (ours, theirs) = (runtime(), runtime());
    let (cert, key) = authority.files("h2.demo.raft", 4000);
    let identity = || TransportIdentity::from_pem_files(&cert, &key, authority.ca());
    let (two, _, _) =
        theirs.block_on(async { start(patient(2), identity().expect("an identity"), &book) });
    let address = two.local_addr().expect("an address");
    let (one, _, mut hears) = ours.block_on(async {
        let (one, recorder, mut hears) = start(patient(1), authority.identity(1, "demo"), &book);
        one.connect(host(2));
        assert_eq!(hears.connected().await, host(2));
        (one, recorder, hears)
    });
    // With its runtime gone it can tell nobody, and its port is free.
    theirs.shutdown_timeout(Duration::from_secs(20));
    drop(two);
    ours.block_on(async {
        let mut again = patient(2);
        again.listen = address;
        again.open_count = 2;
        let (two, _, _) = start(again, identity().expect("an identity"), &book);
        hears
            .event(|event| matches!(event, TransportEvent::Disconnected { .. }))
            .await;
        assert_eq!(hears.connected().await, host(2));
        two.close();
        one.close();
    });
}
