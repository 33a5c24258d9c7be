//! The mesh in memory, through the same interface.

use std::sync::Arc;

use raft_transport::LoopbackMesh;

use crate::common::{Recorder, Told, envelope, group, host, replica};

#[tokio::test]
async fn a_mesh_delivers_until_it_is_cut() {
    let mesh = LoopbackMesh::new();
    let ((one, mut one_hears), (two, mut two_hears)) = (Recorder::new(), Recorder::new());
    let one = mesh.join(host(1), one);
    let two = mesh.join(host(2), Arc::clone(&two) as Arc<_>);
    one.send(host(2), vec![envelope(7, b"through")]);
    assert_eq!(two_hears.messages(1).await, [envelope(7, b"through")]);
    mesh.set_cut(host(1), host(2), true);
    one.send(host(2), vec![envelope(7, b"lost")]);
    let lost = |told| match told {
        Told::Unreachable(to, replicas) => Some((to, replicas)),
        _ => None,
    };
    let expected = (host(2), vec![(group(7), replica(2))]);
    assert_eq!(one_hears.wait(lost).await, expected);
    mesh.set_cut(host(1), host(2), false);
    two.close();
    one.send(host(2), vec![envelope(7, b"lost")]);
    assert_eq!(one_hears.wait(lost).await, expected);
    assert_eq!(
        (one.stats().messages_sent, one.stats().messages_dropped),
        (1, 2)
    );
}
