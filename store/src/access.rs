//! Who may do what in etcd: a user for each namespace, known by the common name of its certificate, whose role is to read
//! and write the namespace's keys and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use etcd_client::{
    AuthClient, Error, Permission, PermissionType, RoleRevokePermissionOptions, UserAddOptions,
};
use futures::{FutureExt, future::BoxFuture};

use concordat_protocol::Range;

use crate::{
    Admin, CommitError, keys,
    observer::{Counts, Purpose},
    read::unanswered,
};

/// The user that may do everything: the operator's, by the common name of its certificate.
pub const ROOT: &str = "root";
const OF_NAMESPACE: &str = "concordat:";

const THERE_IS_USER: &str = "etcdserver: user name already exists";
const THERE_IS_ROLE: &str = "etcdserver: role name already exists";
const NO_USER: &str = "etcdserver: user name not found";
const NO_ROLE: &str = "etcdserver: role name not found";
const NOT_GRANTED: &str = "etcdserver: role is not granted to the user";
const NOT_PERMITTED: &str = "etcdserver: permission is not granted to the role";

/// The name of a namespace's user and of its role: the common name of the certificates of its sidecars.
pub fn user_of(namespace: &str) -> String {
    format!("{OF_NAMESPACE}{namespace}")
}

/// All of these may be repeated, also by several at once; what is as it should be is not written anew, for every change
/// of permissions costs whoever asks etcd at that moment a repeat.
impl Admin {
    /// Lets nobody in any more without a certificate whose common name is a user's. [`ROOT`] is made one first, so whoever
    /// calls this by a certificate of that name goes on to be let in.
    ///
    /// # Errors
    /// [`CommitError`] when etcd does not answer, or does not take it from this user.
    pub async fn require_users(&self) -> Result<(), CommitError> {
        self.role(ROOT).await?;
        self.user(ROOT, ROOT).await?;
        self.auth(&[], |mut auth| async move { auth.auth_enable().await.map(drop) }.boxed()).await?;
        Ok(())
    }

    /// Gives a namespace its user, and takes from it whatever else it was given. Answers whether anything was changed.
    ///
    /// # Errors
    /// [`CommitError`] when etcd does not answer, or does not take it from this user.
    pub async fn admit(&self, namespace: &str) -> Result<bool, CommitError> {
        let name = user_of(namespace);
        let permissions = self.role(&name).await?;
        let mut changed = self.permit(&name, permissions, keys::range(namespace, &Range::All)).await?;
        changed |= self.user(&name, &name).await?;
        Ok(changed)
    }

    /// Takes a namespace's user and role away. Answers whether there was any.
    ///
    /// # Errors
    /// [`CommitError`] when etcd does not answer, or does not take it from this user.
    pub async fn dismiss(&self, namespace: &str) -> Result<bool, CommitError> {
        let name = user_of(namespace);
        let user = name.clone();
        let user = self.auth(&[NO_USER], move |mut auth| {
            let name = user.clone();
            async move { auth.user_delete(name).await.map(drop) }.boxed()
        });
        let user = user.await?;
        let role = self.auth(&[NO_ROLE], move |mut auth| {
            let name = name.clone();
            async move { auth.role_delete(name).await.map(drop) }.boxed()
        });
        Ok(user.is_some() | role.await?.is_some())
    }

    /// The namespaces that have a user or a role, and whether they have both. What these may do is not looked at.
    ///
    /// # Errors
    /// [`CommitError`] when etcd does not answer, or does not tell it to this user.
    pub async fn admitted(&self) -> Result<BTreeMap<String, bool>, CommitError> {
        let users = self
            .auth(&[], |mut auth| async move { Ok(auth.user_list().await?.users().to_vec()) }.boxed())
            .await?;
        let roles = self
            .auth(&[], |mut auth| async move { Ok(auth.role_list().await?.roles().to_vec()) }.boxed())
            .await?;
        let [users, roles] = [users, roles].map(|names| -> BTreeSet<String> {
            let names = names.into_iter().flatten();
            names.filter_map(|name| name.strip_prefix(OF_NAMESPACE).map(str::to_owned)).collect()
        });
        let both = |name: &String| (name.clone(), users.contains(name) && roles.contains(name));
        Ok(users.union(&roles).map(both).collect())
    }

    /// What a role may do; one that is not there is made.
    async fn role(&self, name: &str) -> Result<Vec<Permission>, CommitError> {
        let get = |mut auth: AuthClient| {
            let name = name.to_owned();
            async move { Ok(auth.role_get(name).await?.permissions()) }.boxed()
        };
        if let Some(permissions) = self.auth(&[NO_ROLE], get).await? {
            return Ok(permissions);
        }
        let add = |mut auth: AuthClient| {
            let name = name.to_owned();
            async move { auth.role_add(name).await.map(drop) }.boxed()
        };
        self.auth(&[THERE_IS_ROLE], add).await?;
        Ok(Vec::new())
    }

    /// Makes reading and writing a range all that a role may do, which may do this now.
    async fn permit(
        &self,
        role: &str,
        permissions: Vec<Permission>,
        (from, to): (Vec<u8>, Vec<u8>),
    ) -> Result<bool, CommitError> {
        let (right, wrong): (Vec<_>, Vec<_>) =
            permissions.into_iter().partition(|one| (one.key(), one.range_end()) == (&from, &to));
        let has = right.iter().any(|one| one.get_type() == i32::from(PermissionType::Readwrite));
        if !has {
            let grant = |mut auth: AuthClient| {
                let permission = Permission::read_write(from.clone()).with_range_end(to.clone());
                let role = role.to_owned();
                async move { auth.role_grant_permission(role, permission).await.map(drop) }.boxed()
            };
            self.auth(&[], grant).await?;
        }
        for other in &wrong {
            let revoke = |mut auth: AuthClient| {
                let options = RoleRevokePermissionOptions::new().with_range_end(other.range_end());
                let (role, key) = (role.to_owned(), other.key().to_vec());
                async move { auth.role_revoke_permission(role, key, Some(options)).await.map(drop) }.boxed()
            };
            self.auth(&[NOT_PERMITTED], revoke).await?;
        }
        Ok(!has || !wrong.is_empty())
    }

    /// Makes a user without a password whose one role this is.
    async fn user(&self, name: &str, role: &str) -> Result<bool, CommitError> {
        let get = |mut auth: AuthClient| {
            let name = name.to_owned();
            async move { Ok(auth.user_get(name).await?.roles().to_vec()) }.boxed()
        };
        let found = self.auth(&[NO_USER], get).await?;
        if found.is_none() {
            let add = |mut auth: AuthClient| {
                let (name, options) = (name.to_owned(), UserAddOptions::new().with_no_pwd());
                async move { auth.user_add(name, "", Some(options)).await.map(drop) }.boxed()
            };
            self.auth(&[THERE_IS_USER], add).await?;
        }
        let roles = found.clone().unwrap_or_default();
        let has = roles.iter().any(|one| one == role);
        if !has {
            let grant = |mut auth: AuthClient| {
                let (name, role) = (name.to_owned(), role.to_owned());
                async move { auth.user_grant_role(name, role).await.map(drop) }.boxed()
            };
            self.auth(&[], grant).await?;
        }
        let others: Vec<&String> = roles.iter().filter(|one| *one != role).collect();
        for other in &others {
            let revoke = |mut auth: AuthClient| {
                let (name, role) = (name.to_owned(), (*other).clone());
                async move { auth.user_revoke_role(name, role).await.map(drop) }.boxed()
            };
            self.auth(&[NOT_GRANTED], revoke).await?;
        }
        Ok(found.is_none() || !has || !others.is_empty())
    }

    /// Asks etcd's keeper of users; `None` for one of the refusals that are `expected`.
    async fn auth<A: Send + 'static>(
        &self,
        expected: &'static [&'static str],
        request: impl Fn(AuthClient) -> BoxFuture<'static, Result<A, Error>>,
    ) -> Result<Option<A>, CommitError> {
        let request = |client: etcd_client::Client| {
            let asked = request(client.auth_client());
            async move {
                match asked.await {
                    Err(Error::GRpcStatus(status)) if expected.contains(&status.message()) => Ok(None),
                    answer => answer.map(Some),
                }
            }
            .boxed()
        };
        self.exchange("").client(Purpose::Session, Counts::default(), request).await.map_err(unanswered)
    }
}
