//! Over gRPC: the same, as a client of another make sees it.

use anyhow::{Context, Result};
use concordat_sidecar::dapr::grpc::{
    GetMetadataRequest, GetMetadataResponse, TryLockRequest, TryLockResponse, UnlockRequest, UnlockResponse,
};
use tonic::{Code, Request, Response, Status, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::world::{STORE, Sidecar, World};

struct Client(Grpc<Channel>, Option<&'static str>);

impl Client {
    async fn of(sidecar: &Sidecar) -> Result<Self> {
        let endpoint = Channel::from_shared(format!("http://127.0.0.1:{}", sidecar.grpc))?;
        Ok(Self(Grpc::new(endpoint.connect().await?), None))
    }

    async fn call<Q, A>(&mut self, method: &str, message: Q) -> Result<Response<A>, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.0.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let mut request = Request::new(message);
        if let Some(token) = self.1 {
            request
                .metadata_mut()
                .insert("dapr-api-token", token.parse().map_err(|_| Status::unknown("token"))?);
        }
        let path = format!("/dapr.proto.runtime.v1.Dapr/{method}");
        let path = path.parse().map_err(|_| Status::unknown("path"))?;
        self.0.unary(request, path, ProstCodec::<Q, A>::default()).await
    }

    async fn lock(&mut self, ask: TryLockRequest) -> Result<Response<TryLockResponse>, Status> {
        self.call("TryLockAlpha1", ask).await
    }

    async fn unlock(&mut self, resource: &str, owner: &str) -> Result<i32, Status> {
        let ask = UnlockRequest {
            store_name: STORE.into(),
            resource_id: resource.into(),
            lock_owner: owner.into(),
        };
        let answer: Response<UnlockResponse> = self.call("UnlockAlpha1", ask).await?;
        Ok(answer.into_inner().status)
    }
}

fn ask(store: &str, resource: &str, owner: &str, expiry_in_seconds: i32) -> TryLockRequest {
    TryLockRequest {
        store_name: store.into(),
        resource_id: resource.into(),
        lock_owner: owner.into(),
        expiry_in_seconds,
    }
}

#[tokio::test]
async fn a_lock_is_taken_with_a_fence_and_let_go() -> Result<()> {
    let world = World::new().await?;
    let sidecar = world.serving("a").await?;
    let mut client = Client::of(&sidecar).await?;
    let granted = client.lock(ask(STORE, "k", "first", 60)).await?;
    assert!(granted.get_ref().success);
    let fence = granted.metadata().get("concordat-fence").context("no fence")?.to_str()?;
    assert_eq!(sidecar.inspect("k").await?["fence"].to_string(), fence);
    for owner in ["second", "first"] {
        let held = client.lock(ask(STORE, "k", owner, 60)).await?;
        assert!(!held.get_ref().success && held.metadata().get("concordat-fence").is_none());
    }
    // One lock for both ways in.
    assert_eq!(sidecar.lock("k", "second", 60).await?.body["success"], false);
    assert_eq!(client.unlock("k", "second").await?, 2);
    assert_eq!(sidecar.unlock("k", "first").await?, 0);
    assert_eq!(client.unlock("k", "first").await?, 1);

    let metadata: Response<GetMetadataResponse> = client.call("GetMetadata", GetMetadataRequest {}).await?;
    let metadata = metadata.into_inner();
    assert_eq!((metadata.id.as_str(), metadata.registered_components[0].name.as_str()), ("billing", STORE));
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_dapr_s_codes() -> Result<()> {
    let world = World::new().await?;
    let sidecar = world.serving("a").await?;
    let mut client = Client::of(&sidecar).await?;
    for (ask, code) in [
        (ask(STORE, "", "a", 1), Code::InvalidArgument),
        (ask(STORE, "k", "", 1), Code::InvalidArgument),
        (ask(STORE, "k", "a", 0), Code::InvalidArgument),
        (ask(STORE, "k", "a", -1), Code::InvalidArgument),
        (ask("nowhere", "k", "a", 1), Code::InvalidArgument),
        (ask(STORE, "a||b", "a", 1), Code::Internal),
    ] {
        let refused = client.lock(ask.clone()).await.err().map(|status| status.code());
        assert_eq!(refused, Some(code), "{ask:?}");
    }
    for method in ["GetState", "PublishEvent", "TryLock"] {
        let refused = client.call::<_, TryLockResponse>(method, ask(STORE, "k", "a", 1)).await.err();
        assert_eq!(refused.map(|status| status.code()), Some(Code::Unimplemented), "{method}");
    }
    assert_eq!(sidecar.inspect("k").await?["fence"], serde_json::Value::Null, "nothing was taken");

    let empty = World::empty().await?;
    let sidecar = empty.serving("b").await?;
    let mut client = Client::of(&sidecar).await?;
    let refused = client.lock(ask(STORE, "k", "a", 1)).await.err().map(|status| status.code());
    assert_eq!(refused, Some(Code::FailedPrecondition));
    Ok(())
}

#[tokio::test]
async fn the_token_is_asked_for_where_there_is_one() -> Result<()> {
    let world = World::new().await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    std::fs::write(&file, "secret")?;
    let file = file.to_str().context("a path")?;
    let sidecar = world.sidecar("a", &["--dapr", "--token-file", file]).await?;
    let mut client = Client::of(&sidecar).await?;
    for (token, refused) in [
        (None, Some(Code::Unauthenticated)),
        (Some("wrong"), Some(Code::Unauthenticated)),
        (Some("secret"), None),
    ] {
        client.1 = token;
        assert_eq!(client.lock(ask(STORE, "k", "a", 60)).await.err().map(|status| status.code()), refused);
    }
    Ok(())
}
