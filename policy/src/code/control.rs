//! W6: the control plane and its store.

use super::{Code, CodeId, Level};

rows! {
    CONTROL;
    CONTROL_LOST = "W6001" Warning "the agent works without a server"
        cause: "no server can be reached; calls go on with the last policy, nothing new is learnt"
        fix: ["is the server up?   weft status"];
    STORE_LOCKED = "W6002" Error "the store is used by another process"
        cause: "another server runs on the same directory; two would overwrite each other"
        fix: ["is it ours?   weft status", "stop it:   weft down"];
    STORE_NEWER = "W6003" Error "the store was written by a newer version"
        cause: "an older server could lose what it does not know, so it does not start"
        fix: ["use the newer version; this one is:   weft version"];
    STORE_DAMAGED = "W6004" Error "the store cannot be read"
        cause: "a damaged disk or file; nothing was changed"
        fix: ["restore the file from a copy, then   weft server run"];
    STORE_UNAVAILABLE = "W6005" Error "the store cannot be written now"
        cause: "the disk is full or failing, or etcd has no leader or room; reads go on, nothing was changed"
        fix: ["make room, then   weft status"];
    OUTCOME_UNKNOWN = "W6006" Error "it is unknown whether the change was made"
        cause: "the store failed in the middle of the commit"
        fix: ["look before trying again:   weft get <kind>/<name>"];
    WRITE_CONFLICT = "W6007" Error "somebody else changed it meanwhile"
        cause: "the object's revision is not the one that this change was made from"
        fix: ["see it as it is now:   weft get <kind>/<name> -o yaml",
              "see the difference:   weft diff -f <file>"];
    COMPACTED = "W6008" Error "that part of the history is gone"
        cause: "the revision asked for is older than what the store keeps"
        fix: ["start from now:   weft get <kind> -w"];
    STORE_FULL = "W6009" Error "the store holds as much as it may"
        cause: "its quota of bytes or leases is reached; deleting works"
        fix: ["see what is there:   weft get <kind> -A", "make room:   weft delete <kind>/<name>"];
    OUT_OF_BOUNDS = "W6010" Error "the change or page is larger than the store takes"
        cause: "an object over 256 KiB, too many objects in one transaction, or a page over 500"
        fix: ["split it:   weft apply -f <file>"];
    NO_LEASE = "W6011" Error "the lease has ended"
        cause: "its owner did not renew it in time or gave it back"
        fix: ["see the agents:   weft status"];
    STORE_BEHIND = "W6012" Error "the store lies behind what was already seen"
        cause: "it was restored from an old copy or replaced; going on could undo revocations"
        fix: ["see its revision:   weft status", "apply what is missing:   weft apply -f <file>",
              "an etcd that was restored on purpose is accepted after moving etcd.json out of the state directory"];
    STORE_CLOSED = "W6013" Error "the server is shutting down"
        cause: "its store is closed already"
        fix: ["try again, or see:   weft status"];
    UNAUTHENTICATED = "W6014" Error "the server does not know who is asking"
        cause: "no certificate of the mesh was presented, it has expired, or it is of another trust domain"
        fix: ["on the server's host the socket is enough:   weft status",
              "elsewhere, get one from an admin:   weft token create --for user --user <name> --role viewer"];
    NOT_PERMITTED = "W6015" Error "the role does not permit this"
        cause: "the method needs a higher role, or a role in this namespace"
        fix: ["an admin can give one:   weft token create --for user --user <name> --role <role> -n <namespace>"];
    LOOSENING_NEEDS_ADMIN = "W6016" Error "loosening a default needs the role admin"
        cause: "a change towards Allow or Audit opens what was closed; tightening needs only editor"
        fix: ["on the server's host:   weft apply -f <file>"];
    TOO_MANY_STREAMS = "W6018" Error "the client has too many streams or requests open"
        cause: "one client may not crowd out the others"
        fix: ["close some; see who is connected:   weft status"];
    SNAPSHOT_REFUSED = "W6019" Error "an agent refuses the configuration that it was sent"
        cause: "it is incomplete or contradicts itself; the agent keeps the last good one"
        fix: ["see which and why:   weft status", "correct the object:   weft apply -f <file>"];
    DELTA_LOST = "W6020" Warning "an update did not fit and was fetched again in full"
        cause: "parts were lost or reordered between server and agent"
        fix: ["see the agents:   weft status"];
    REGISTRATION_REFUSED = "W6021" Error "the server refuses to register the workload"
        cause: "no WorkloadEnrollment of the namespace gives that identity and service to this node"
        fix: ["see the enrollments:   weft get workloadenrollments -A",
              "write one:   weft token create --for agent --node <node> --namespace <namespace> --service <service>"];
    REGISTERED_ELSEWHERE = "W6022" Error "the workload's name belongs to another node"
        cause: "two nodes register the same workload name in one namespace"
        fix: ["see it:   weft get workloads -A -o wide"];
    OLD_BOOT = "W6023" Error "a newer run of this agent is connected"
        cause: "two agents use one state directory or a copy of it; the older one is refused"
        fix: ["see the agents:   weft status", "stop the other:   weft down"];
    DEADLINE = "W6024" Error "the server did not answer in time"
        cause: "it is overloaded or the network is slow; the change may have been made"
        fix: ["look before trying again:   weft get <kind>/<name>", "see the server:   weft status"];
    VERSION_SKEW = "W6026" Error "the two sides speak versions too far apart"
        cause: "one of them does not know what the other needs"
        fix: ["compare:   weft version"];
    METHOD_WITHOUT_ROLE = "W6027" Error "a method of the server has no role"
        cause: "a build in which somebody forgot to say who may call it; the server does not start"
        fix: ["use another build; this one is:   weft version"];
    WRONG_SERVER = "W6028" Error "what answers on the control port is not the server of this mesh"
        cause: "another mesh's server, or an address that now belongs to somebody else; nothing was sent"
        fix: ["see the agent's servers:   weft agent status",
              "join again:   weft agent join --token-file <file>"];
    GOING_AWAY = "W6029" Warning "the server asked the agent to connect elsewhere"
        cause: "it shuts down or has too many agents"
        fix: ["see the servers:   weft status"];
    MESSAGE_TOO_LARGE = "W6030" Error "a message is larger than the limit"
        cause: "4 MiB is the most for one message of the control plane"
        fix: ["split it:   weft apply -f <file>"];
    LOCKOUT = "W6031" Error "the change would refuse calls that are made now"
        cause: "a policy would lock out callers that are allowed at present"
        fix: ["see whom:   weft policy check <caller> <service> -f <file>",
              "if it is meant:   weft apply -f <file> --force",
              "try it for a while:   weft apply -f <file> --force --confirm-within 10m"];
    CHANGE_WITHOUT_EFFECT = "W6032" Warning "some agents have not taken the change yet"
        cause: "they are not connected or still busy with an earlier one"
        fix: ["see which:   weft status"];
    STORE_REPLACED = "W6033" Error "the store is not the one that this server knows"
        cause: "etcd was wiped, exchanged or restored into a new cluster; going on could undo revocations"
        fix: ["see which one is asked:   weft config view --origin",
              "if it is meant, move etcd.json out of the server's state directory, then   weft server run"];
    ETCD_UNREACHABLE = "W6034" Error "etcd cannot be reached"
        cause: "no member that has a leader answers at the configured endpoints, or they prove to be others"
        fix: ["see which ones are asked:   weft config view --origin", "start etcd, then   weft server run"];
    ETCD_FORBIDDEN = "W6035" Error "etcd does not let this server in"
        cause: "the user, password or certificate is not known there, or may not use the keys of this mesh"
        fix: ["see as whom it asks:   weft config view --origin",
              "give that user the permission readwrite on the prefix, then   weft server run"];
    STORE_NOT_EMPTY = "W6036" Error "the store that should be filled holds something already"
        cause: "another mesh is kept there, or this one was moved before; nothing was changed"
        fix: ["choose another one: --prefix of   weft server migrate", "or look at it first:   weft server run"];
    STORE_UNFINISHED = "W6037" Error "the store was not filled to its end"
        cause: "moving or restoring the mesh was interrupted; a server on it would miss policies"
        fix: ["do it again, which begins anew:   weft server migrate"];
    UNCONFIRMED = "W6050" Warning "a change waits for its confirmation"
        cause: "it was made with --confirm-within and is taken back when nobody confirms it in time"
        fix: ["see which:   weft status", "keep it:   weft confirm <change>",
              "take it back now:   weft confirm <change> --abort"];
    NOT_TAKEN_BACK = "W6051" Error "a change that nobody confirmed could not be taken back as a whole"
        cause: "somebody has changed its objects since, or what stood before does not fit what stands now"
        fix: ["see what it was:   weft history <kind>/<name>", "bring it back:   weft rollback <kind>/<name> --to <revision>",
              "keep it:   weft confirm <change>"];
    NOT_WAITING = "W6052" Error "no such change waits for a confirmation"
        cause: "it was confirmed or taken back already, or needs no confirmation"
        fix: ["see what waits:   weft status", "see what became of it:   weft history <kind>/<name>"];
    NO_SUCH_REVISION = "W6053" Error "that revision is not in the history"
        cause: "there was none, or it is older than what is kept: 50 of an object, 2,000 changes, 32 MiB"
        fix: ["see the revisions:   weft history <kind>/<name>"];
    AUDIT_UNAVAILABLE = "W6054" Error "the audit log cannot be written, so nothing may be changed"
        cause: "its disk is full or failing; a change that nobody could account for is refused, reading goes on"
        fix: ["make room on the server's disk, then   weft status"];
    AUDIT_BROKEN = "W6055" Error "the audit log is not as it was written"
        cause: "an entry was removed, changed or cut off: by hand, by a damaged disk, or by an old copy of the directory"
        fix: ["see what is wrong:   weft server audit verify",
              "if it is lost for good, stop the server and begin anew:   weft server audit accept"];
    RECORDS_REFUSED = "W6060" Error "records of the store are not as the server wrote them"
        cause: "somebody else wrote, deleted or put back records in the store, or the server has lost its key of records; what they are about is denied"
        fix: ["see which:   weft status",
              "if what stands there is meant, stop the server and sign it:   weft server records accept"];
    SERVER_NOT_ADMITTED = "W6070" Error "the mesh does not know this server"
        cause: "a further server signs with a root of its own, which must be let into the trust bundle first"
        fix: ["on a server of the mesh:   weft token create --for server",
              "then here:   weft server join --config <server.yaml> --token-file <file>"];
    SERVER_TOO_NEW = "W6071" Error "the server is too new to sign"
        cause: "it was admitted less than a leaf lifetime ago, so agents that were away may not know its root, and no other server answers that signs for it"
        fix: ["ask another server, or start one:   weft status"];
    SERVER_CANNOT_JOIN = "W6072" Error "this server cannot join a mesh"
        cause: "servers share a mesh through one etcd, and each has a directory of its own"
        fix: ["name the etcd of the mesh under store.etcd in server.yaml; see   weft config view --origin",
              "move a mesh into etcd:   weft server migrate --to etcd://<host>:2379"];
}
